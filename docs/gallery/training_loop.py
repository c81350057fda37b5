"""A training loop in twenty lines: python training_loop.py [--data=emodb:PATH] [--epochs=8] [--out=PNG]"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

import ser_fast
from ser_fast.data.dataset import load_dataset
from ser_fast.reports import figures


def main(data, epochs, out):
    torch.manual_seed(0)
    dataset = load_dataset(data, sample_rate=16000)
    speakers = sorted(set(dataset.speakers))
    split = dataset.split(test_speakers=speakers[-2:], validation="none")
    train, test = (dataset.batches(part, batch_size=16) for part in (split.train, split.test))
    model = ser_fast.CGRU(len(dataset.classes), sample_rate=16000)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(epochs):
        model.train()
        total = 0.0
        for batch in train.epoch(torch.Generator().manual_seed(epoch)):
            loss = F.cross_entropy(model(batch.wave, batch.lengths), torch.tensor(batch.labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * batch.size
        print(f"epoch {epoch + 1}: loss {total / len(split.train):.3f}")

    model.eval()
    counts = torch.zeros(2 * [len(dataset.classes)], dtype=torch.int64)
    with torch.no_grad():
        for batch in test.epoch():
            for true, predicted in zip(batch.labels, model(batch.wave, batch.lengths).argmax(1)):
                counts[true, predicted] += 1
    recall = (counts.diagonal() / counts.sum(1)).nanmean()
    title = f"CGRU, {epochs} epochs, speakers {' and '.join(speakers[-2:])} left out: UA {recall:.1%}"
    print(title)
    figures.confusion(counts.tolist(), dataset.classes, Path(out), title)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="synthetic")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", default="training_loop.png")
    main(**vars(parser.parse_args()))
