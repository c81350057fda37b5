"""Follow the emotion of one voice, 10 ms at a time: python microphone.py [seconds]"""

import sys
import time

import torch
import torch.nn as nn

import ser_fast

CHUNK = 160  # samples that a microphone delivers at a time: 10 ms


class Follower(nn.Module):
    """Classes of a voice from the last ``memory`` frames of a GRU, weighted by attention."""

    def __init__(self, classes=4, hidden_size=128, memory=200):
        super().__init__()
        self.memory = memory
        self.spectrogram = ser_fast.PowerSpectrogram(
            16000, 512, win_length=400, hop_length=CHUNK, f_max=4000, log=True
        )
        self.rnn = ser_fast.GRU(129, hidden_size, batch_first=True)
        self.pool = ser_fast.AttentionPool(hidden_size)
        self.classifier = nn.Linear(hidden_size, classes)

    def forward(self, wave):
        """Return the logits after the whole wave [B, N]; this is how the model is trained."""
        states, _ = self.rnn(self.spectrogram(wave))
        return self.classifier(self.pool(states[:, -self.memory :]))

    @torch.inference_mode()
    def follow(self, chunks):
        """Yield the logits [1, classes] after each chunk [1, n] that completes a frame, and after the last one."""
        stream, state, states = self.spectrogram.stream(), None, torch.empty(1, 0, self.rnn.hidden_size)
        for chunk in (*chunks, None):
            frames = stream.finish() if chunk is None else stream(chunk)
            if frames.shape[1]:
                new, state = self.rnn(frames, state)
                states = torch.cat([states, new], 1)[:, -self.memory :]
                yield self.classifier(self.pool(states))


def main(seconds=10.0):
    torch.manual_seed(0)
    model, times = Follower().eval(), []
    wave = 0.1 * torch.randn(1, int(16000 * seconds))  # what a microphone would deliver
    start = time.perf_counter()
    for _ in model.follow(wave.split(CHUNK, 1)):
        times.append(1e3 * (time.perf_counter() - start))
        start = time.perf_counter()
    median, most = (torch.tensor(times[10:]).quantile(share).item() for share in (0.5, 0.99))
    print(f"{len(times)} updates: median {median:.2f} ms, 99 % within {most:.2f} ms of their 10 ms")


if __name__ == "__main__":
    torch.set_num_threads(1)  # a frame is too little work for two
    main(*map(float, sys.argv[1:]))
