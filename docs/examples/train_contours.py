"""Classify rising, falling, level and trembling voices with nn.GRU: python train_contours.py [steps]"""

import sys

import torch
import torch.nn as nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

CONTOURS = {
    "rising": lambda t: 0.4 * t,
    "falling": lambda t: -0.4 * t,
    "level": lambda t: 0 * t,
    "trembling": lambda t: 0.08 * torch.sin(35 * t),
}


class ContourTagger(nn.Module):
    def __init__(self, bands=64, hidden_size=64):
        super().__init__()
        self.bands = bands
        self.rnn = nn.GRU(bands, hidden_size, num_layers=2, batch_first=True, bidirectional=True)
        self.classifier = nn.Linear(2 * hidden_size, len(CONTOURS))

    def forward(self, waves, lengths):
        spectrum = torch.stft(waves, 512, 160, 400, torch.hann_window(400), return_complex=True).abs() ** 2
        bands = spectrum.transpose(1, 2)[..., : self.bands].add(1e-3).log()
        packed = pack_padded_sequence(bands, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.classifier(states.sum(1) / lengths[:, None])


def voice(contour):
    """Return 0.5 to 1.25 s of a harmonic tone whose pitch follows the contour, at 16 kHz."""
    samples = int(torch.randint(8000, 20000, ()))
    time = torch.linspace(0, 1, samples)
    pitch = (100 + 150 * torch.rand(())) * (1 + CONTOURS[contour](time))
    phase = torch.cumsum(2 * torch.pi * pitch / 16000, 0)
    return sum(torch.sin(k * phase) / k for k in range(1, 12)) + 0.05 * torch.randn(samples)


def batch(rows=4):
    """Return waves [B, N], lengths [B] in frames and labels [B], ``rows`` of each contour."""
    waves = [voice(contour) for contour in CONTOURS for _ in range(rows)]
    labels = torch.arange(len(CONTOURS)).repeat_interleave(rows)
    return pad_sequence(waves, batch_first=True), torch.tensor([len(wave) // 160 + 1 for wave in waves]), labels


def main(steps=60):
    torch.manual_seed(0)
    model = ContourTagger()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(steps):
        waves, lengths, labels = batch()
        loss = nn.functional.cross_entropy(model(waves, lengths), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        print(f"step {step + 1:3d}  loss {loss.item():.6f}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
