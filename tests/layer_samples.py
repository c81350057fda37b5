"""Arguments of ``gru_layer`` at the sizes that break its kernel."""

import itertools

import torch
from samples import ragged


def weights_of(features, hidden, directions=1, biased=True, dtype=torch.float64) -> list:
    shapes = [(3 * hidden, features), (3 * hidden, hidden)] + biased * [(3 * hidden,)] * 2
    return [torch.randn(shape, dtype=dtype) / hidden**0.5 for shape in shapes * directions]


def arguments_of(frames, batch, features, hidden, directions, *, ragged_rows, biased, reset_after, batch_first=False,
                 packed=False, dtype=torch.float64) -> tuple:  # fmt: skip
    x = torch.randn(*((batch, frames) if batch_first else (frames, batch)), features, dtype=dtype)
    h0 = torch.randn(directions, batch, hidden, dtype=dtype) if biased else None
    lengths = ragged(batch, frames) if ragged_rows else None
    if packed:
        rows = x if batch_first else x.transpose(0, 1)
        x = torch.cat([row[:length] for row, length in zip(rows, lengths.tolist())])
    weights = weights_of(features, hidden, directions, biased, dtype)
    return x, weights, h0, lengths, biased, reset_after, batch_first


def cases():
    """Up to 8 frames take the weights as they lie; 1, 4, 8 and more rows have register blocks of their own."""
    for sizes in [(1, 1, 1, 1, 1), (2, 3, 5, 7, 2), (8, 1, 17, 33, 2), (5, 9, 33, 17, 2), (12, 1, 40, 129, 1),
                  (7, 4, 3, 16, 1), (9, 17, 19, 31, 2), (70, 2, 300, 65, 1)]:  # fmt: skip
        for ragged_rows, biased, reset_after in itertools.product((False, True), repeat=3):
            options = {"ragged_rows": ragged_rows, "biased": biased, "reset_after": reset_after}
            yield sizes, options | {"batch_first": biased ^ reset_after}
            if ragged_rows and sizes[1] > 1:
                yield sizes, options | {"packed": True}


CASES = list(cases())


def case_id(case) -> str:
    sizes, options = case
    return f"{'x'.join(map(str, sizes))}-{'-'.join(name for name, value in options.items() if value)}"


def cast(value, dtype):
    if isinstance(value, list):
        return [cast(one, dtype) for one in value]
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def on_meta(value):
    if isinstance(value, list):
        return [on_meta(one) for one in value]
    return value.to("meta") if isinstance(value, torch.Tensor) else value
