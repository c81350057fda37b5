"""Losses and targets of classes, and losses, units and scores of values."""

import numpy as np
import pytest
import torch

from ser_fast.training.metrics import concordance
from ser_fast.training.task import Regression, task_of


class Head(torch.nn.Module):
    """A model that is its last layer, on 4 features."""

    def __init__(self, targets: int):
        super().__init__()
        self.classifier = torch.nn.Linear(4, targets)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.classifier(features)


def begun(rows: np.ndarray, loss: str = "auto") -> tuple[Regression, Head]:
    task = Regression(0, [f"t{number}" for number in range(rows.shape[1])], loss)
    model = Head(rows.shape[1])
    task.begin(model, rows.tolist())
    return task, model


def test_l1_loss_is_between_softmax_and_one_hot():
    logits = torch.tensor([[2.0, 0.0]])
    p = logits.softmax(1)
    task = task_of(["x", "y"], "l1")
    assert task.loss(logits, task.targets([0])) == pytest.approx(float((1 - p[0, 0] + p[0, 1]) / 2))


def test_label_smoothing_spreads_every_target():
    logits, truth = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([1])
    for name, by_hand in (
        ("cross_entropy", torch.nn.functional.cross_entropy(logits, truth, label_smoothing=0.3)),
        ("l1", (logits.softmax(1) - torch.tensor([[0.1, 0.8, 0.1]])).abs().mean()),
    ):
        task = task_of(["x", "y", "z"], name, 0.3)
        torch.testing.assert_close(task.loss(logits, task.targets([1])), by_hand)


@pytest.mark.parametrize("loss", ["ccc", "mse"])
def test_task_of_refuses_losses_of_values_for_classes(loss):
    with pytest.raises(
        ValueError, match=f"loss is {loss}, but data has classes, not values; it must be one of auto, cross"
    ):
        task_of(["x", "y"], loss)


def test_regression_standardises_by_the_training_labels():
    rows = np.random.default_rng(0).normal([50, -3], [20, 0.1], (100, 2))
    task, model = begun(rows)
    targets = task.targets(rows.tolist())
    torch.testing.assert_close(targets.mean(0), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(targets.std(0, correction=0), torch.ones(2))
    at_mean = task.predict(model(torch.zeros(3, 4)))
    assert at_mean == [pytest.approx(tuple(rows.mean(0)))] * 3, "an untrained model starts at the mean"


def test_regression_of_a_constant_target_is_finite():
    task, model = begun(np.full((5, 1), 0.1))
    assert task.std.tolist() == [1.0] and task.targets([0.1, 0.1]).abs().max() < 1e-6
    assert task.predict(model(torch.zeros(1, 4))) == [pytest.approx((0.1,))]


def test_regression_keeps_weights_in_the_unit_of_the_corpus():
    rows = np.random.default_rng(1).normal([1000, 3], [100, 1], (50, 2))
    task, model = begun(rows)
    x, targets = torch.randn(6, 4), task.targets(rows[:6])
    expected, loss = torch.tensor(task.predict(model(x))), task.loss(model(x), targets)
    inner = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights, standardised = task.kept(model.state_dict())
    shipped = Head(2)
    shipped.load_state_dict(weights)
    torch.testing.assert_close(shipped(x), expected.float())
    task.finish(model)
    torch.testing.assert_close(model(x), expected.float())
    assert task.predict(model(x)) == [pytest.approx(tuple(row)) for row in expected.tolist()]
    torch.testing.assert_close(task.loss(model(x), targets), loss, msg="losses stay standardised")
    task.finish(model)
    torch.testing.assert_close(model(x), expected.float(), msg="finishing twice changes nothing")

    other, resumed = begun(rows + 5)
    resumed.load_state_dict(weights)
    other.restore(resumed, standardised)
    assert all(torch.equal(tensor, inner[name]) for name, tensor in resumed.state_dict().items()), "bit for bit"
    assert torch.equal(other.mean, task.mean) and torch.equal(other.std, task.std)


def test_regression_resumes_older_runs_in_their_unit():
    task, model = begun(np.array([[3.0], [5.0]]))
    task.restore(model, {})
    assert task.targets([3.0, 5.0]).tolist() == [[3.0], [5.0]]
    assert all(
        torch.equal(tensor, model.state_dict()[name]) for name, tensor in task.kept(model.state_dict())[0].items()
    )


def test_regression_losses_by_hand():
    rows = np.random.default_rng(2).normal([5, 0], [2, 1], (40, 2))
    outputs = torch.randn(40, 2)
    z = (rows - rows.mean(0)) / rows.std(0)
    difference = outputs.numpy() - z
    by_hand = {"auto": np.abs(difference).mean(), "l1": np.abs(difference).mean(), "mse": (difference**2).mean()}
    by_hand["ccc"] = 1 - np.mean([concordance(z[:, i], outputs[:, i].numpy()) for i in range(2)])
    for loss, expected in by_hand.items():
        task, _ = begun(rows, loss)
        assert float(task.loss(outputs, task.targets(rows))) == pytest.approx(expected, rel=1e-5), loss


@pytest.mark.parametrize(
    ("outputs", "targets", "still"),
    [([0.3], [0.5], True), ([0.5], [0.5], True), ([0.1, 0.9], [0.5, 0.5], True), ([0.5, 0.5], [0.1, 0.9], False),
     ([0.0, 0.0], [0.0, 0.0], True)],
)  # fmt: skip
def test_ccc_loss_of_constant_batches_is_finite(outputs, targets, still):
    task = Regression(0, loss="ccc")
    given = torch.tensor(outputs)[:, None].requires_grad_()
    loss = task.loss(given, task.targets(targets))
    loss.backward()
    assert loss.item() == pytest.approx(1) and given.grad.isfinite().all()
    assert (given.grad.abs().max() == 0) == still


def test_ccc_loss_has_the_derivative_of_its_formula():
    task = Regression(0, ["a", "b"], "ccc")
    targets = torch.randn(7, 2)
    given = torch.randn(7, 2, requires_grad=True)
    task.loss(given, targets).backward()
    step = 1e-3
    for row, column in ((0, 0), (3, 1)):
        moved = [given.detach().clone() for _ in range(2)]
        for sign, each in zip((-1, 1), moved):
            each[row, column] += sign * step
        low, high = (float(task.loss(each, targets)) for each in moved)
        assert float(given.grad[row, column]) == pytest.approx((high - low) / (2 * step), abs=2e-4)


def test_regression_counts_sides_of_zero_in_the_unit():
    task = Regression(1.0)
    task.begin(Head(1), [-0.9, -0.6, 0.0])
    targets = task.targets([-0.5, 0.0, 0.4])  # 0 is on the upper side, also after standardisation
    assert int(task.hits(targets, targets)) == 3
    assert int(task.hits(task.targets([-0.1, -0.1, 0.1]), targets)) == 2
    task.finish(Head(1))
    assert int(task.hits(torch.tensor([[-0.1], [-0.1], [0.1]]), targets)) == 2


def test_regression_scores_by_its_loss():
    rows = np.array([[1.0, 100.0], [2.0, 300.0], [3.0, 200.0]])
    task, _ = begun(rows)
    valid = task.metrics(rows, rows + np.array([0.5, 50.0]))
    in_units = np.mean([0.5 / rows[:, 0].std(), 50 / rows[:, 1].std()])
    assert valid["standardised_mae"] == pytest.approx(in_units) and task.score(valid) == pytest.approx(-in_units)
    assert begun(rows, "ccc")[0].score(valid) == valid["ccc"]
    assert task_of([], "l1").score({"mae": 2.5, "ccc": 0.1}) == -2.5
