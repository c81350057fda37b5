"""Features of frames as input of the models, in the spectrogram's place."""

import pytest
import torch

import ser_fast
from ser_fast.models import Baseline
from ser_fast.nn.frame_input import FrameInput


def filled(width: int = 6) -> FrameInput:
    module = FrameInput(width)
    module.set_statistics(torch.arange(width) - 1.0, torch.arange(width) + 0.5)
    return module


def test_frame_input_normalises_valid_frames_alone():
    frames, lengths = torch.randn(3, 5, 6), torch.tensor([5, 0, 2])
    found, kept = filled()(frames, lengths)
    wanted = (frames - torch.arange(6) + 1) / (torch.arange(6) + 0.5)
    for row, length in enumerate(lengths.tolist()):
        assert torch.allclose(found[row, :length], wanted[row, :length]) and not found[row, length:].any()
    assert torch.equal(kept, lengths)
    assert torch.allclose(filled()(frames), wanted)


def test_frame_input_passes_gradients_to_valid_frames():
    frames = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    found, _ = filled().double()(frames, torch.tensor([4, 1]))
    found.sum().backward()
    assert frames.grad[0].all() and frames.grad[1, :1].all() and not frames.grad[1, 1:].any()


def test_frame_input_restores_its_statistics():
    other = FrameInput(6)
    other.load_state_dict(filled().state_dict())
    frames = torch.randn(1, 3, 6)
    assert torch.equal(other(frames), filled()(frames)) and "normalize=True" in repr(other)
    assert filled().half().mean.dtype == torch.float32


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 7), (2, 5, 6, 1), (5, 6)])
def test_frame_input_refuses_other_shapes(shape):
    with pytest.raises(RuntimeError, match=r"frames has shape \[.*\]; it must be \[B, T, 6\]"):
        FrameInput(6)(torch.zeros(shape))


def test_frame_input_refuses_other_dtypes_and_options():
    with pytest.raises(RuntimeError, match="frames"):
        FrameInput(6)(torch.zeros(1, 2, 6, dtype=torch.int16))
    for lengths, said in (
        (torch.tensor([3]), r"lengths\[0\] is 3; it must be in 0..2"),
        (torch.ones(2).long(), "lengths"),
    ):
        with pytest.raises(RuntimeError, match=said):
            FrameInput(6)(torch.zeros(1, 2, 6), lengths)
    for options in ({"width": 0}, {"width": 1, "sample_rate": 0}, {"width": 1, "hop_length": 0}):
        with pytest.raises(ValueError, match="is 0; it must be at least 1"):
            FrameInput(**options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ser_fast.BiGRUMHA(3, 2, hidden_size=4, features=6),
        lambda: ser_fast.BiGRUMHA(3, 2, hidden_size=4, features=6, pooling="attention", num_layers=2),
        *(
            lambda kind=kind: Baseline(3, encoder=kind, hidden_size=4, features=6)
            for kind in ("cnn", "lstm", "linear")
        ),
    ],
)
def test_model_of_features_ignores_padding_and_other_rows(make):
    model = make().eval()
    model.spectrogram.set_statistics(torch.ones(6), torch.full((6,), 2.0))
    frames, lengths = torch.randn(3, 12, 6), torch.tensor([12, 5, 1])
    frames[1, 5:], frames[2, 1:] = 1e6, -1e6
    together, weights = model(frames, lengths, return_weights=True)
    alone = torch.cat([model(frames[i : i + 1, :length]) for i, length in enumerate(lengths.tolist())])
    assert torch.allclose(together, alone, atol=1e-5) and together.shape == (3, 3)
    assert model(frames, torch.tensor([12, 0, 1])).isfinite().all()
    if weights is not None:
        assert model.weights_hop in (320, 1280)


def test_model_of_features_trains():
    model = ser_fast.BiGRUMHA(2, 2, hidden_size=4, features=3)
    model(torch.randn(2, 7, 3), torch.tensor([7, 4])).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def test_model_of_features_refuses_waves_and_options():
    model = ser_fast.BiGRUMHA(2, 2, hidden_size=4, features=3)
    with pytest.raises(RuntimeError, match=r"wave has shape \[2, 16000\]; it must be \[B, T, F\]"):
        model(torch.randn(2, 16000))
    with pytest.raises(RuntimeError, match=r"wave has shape \[2, 4, 3\]; it must be \[B, N\]"):
        ser_fast.BiGRUMHA(2)(torch.randn(2, 4, 3))
    with pytest.raises(ValueError, match="features is -1; it must be at least 0"):
        ser_fast.BiGRUMHA(2, features=-1)
    for rate in (0.5, 20000.0, float("nan")):
        with pytest.raises(ValueError, match=rf"frame_rate is {rate}; it must be in 1..16000, the sample rate"):
            ser_fast.BiGRUMHA(2, features=3, frame_rate=rate)


def test_model_of_features_exports_with_free_sizes():
    model = ser_fast.BiGRUMHA(2, 2, hidden_size=4, features=3).eval()
    sizes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("frames")}, {0: torch.export.Dim("batch")})
    given = torch.randn(2, 9, 3), torch.tensor([9, 4])
    exported = torch.export.export(model, given, dynamic_shapes=sizes).module()
    other = torch.randn(3, 14, 3), torch.tensor([14, 2, 7])
    assert torch.allclose(exported(*other), model(*other), atol=1e-6)
