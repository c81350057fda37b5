"""The models inside what training code does: autocast, loss scaling, memory formats."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

import ser_fast

MODELS = {
    "CGRU": lambda: ser_fast.CGRU(3, channels=(4, 4), hidden_size=16, dropout=0.0),
    "BiGRUMHA": lambda: ser_fast.BiGRUMHA(3, num_heads=2, hidden_size=16, attention_dropout=0.0, dropout=0.0),
}
WAVE, LENGTHS = (3, 4000), torch.tensor([4000, 2500, 3100])


def step(model: nn.Module, wave: torch.Tensor, **autocast) -> list[torch.Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", **autocast):
        logits = model(wave, LENGTHS)
        loss = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2]))
    loss.backward()
    return [loss.detach(), *(weight.grad for weight in model.parameters())]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_models_train_under_autocast(name, dtype):
    """Losses within the dtype's own rounding, a few units of it; weights and gradients stay float32."""
    model, wave = MODELS[name](), torch.randn(WAVE)
    truth, found = step(model, wave, enabled=False), step(model, wave, dtype=dtype)
    assert abs(float(found[0] - truth[0])) <= 8 * torch.finfo(dtype).eps
    for weight, gradient in zip(model.parameters(), found[1:]):
        assert weight.dtype == gradient.dtype == torch.float32 and gradient.isfinite().all()


def test_loss_scaling_changes_no_step():
    """float16's way of training; scaling by a power of two changes no rounding in float32."""
    wave = torch.randn(WAVE)
    models = [MODELS["CGRU"]()]
    models.append(copy.deepcopy(models[0]))
    for model, scale in zip(models, (1.0, 2.0**10)):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        loss = nn.functional.cross_entropy(model(wave, LENGTHS), torch.tensor([0, 1, 2]))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), 1e6)
        scaler.step(optimizer)
        scaler.update()
    for one, other in zip(*(model.parameters() for model in models)):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", MODELS)
def test_memory_format_changes_no_logit(name):
    model, wave = MODELS[name]().eval(), torch.randn(WAVE)
    truth = model(wave, LENGTHS)
    if name == "CGRU":
        model = model.to(memory_format=torch.channels_last)
    # The same convolution in another order of sums.
    torch.testing.assert_close(model(wave, LENGTHS), truth, rtol=1e-4, atol=1e-5)
