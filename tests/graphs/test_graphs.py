"""Eager, torch.compile, torch.export and ONNX, forward and backward, over padded, lengths and packed: one table.

docs/graphs.md shows the table; every cell is run here and must be what the table says.
"""

import copy
import itertools
import logging
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import onnxruntime
import pytest
import torch
from selection import important
from torch import Tensor, nn
from torch.export import Dim
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

import ser_fast
from ser_fast.data.audio import read_audio
from ser_fast.data.corpora.synthetic import synthesize

TABLE = Path(__file__).parents[2] / "docs/graphs.md"
DATA = Path(os.environ.get("SER_FAST_DATA") or Path(__file__).parents[3] / "shared" / "data")

WAYS = ("eager", "compile", "export", "ONNX")
FORMS = ("padded", "lengths", "packed", "packed, sorted")
SUBJECTS = {
    "nn.GRU": lambda: nn.GRU(5, 6, 2, batch_first=True, bidirectional=True),
    "GRU": lambda: ser_fast.GRU(5, 6, 2, batch_first=True, bidirectional=True),
    "GRU, reset_after=False": lambda: ser_fast.GRU(5, 6, 2, batch_first=True, bidirectional=True, reset_after=False),
    "BiGRUMHA": lambda: ser_fast.BiGRUMHA(4),
    "CGRU": lambda: ser_fast.CGRU(4, hidden_size=16),
}
MODELS = ("BiGRUMHA", "CGRU")
# Failures of nn.GRU: no graph at all, or one that is fixed to the traced number of frames.
FAILURES = {
    "no": {
        "compile": torch._dynamo.exc.Unsupported,
        "export": (torch._dynamo.exc.UserError, GuardOnDataDependentSymNode),
        "ONNX": torch.onnx.errors.OnnxExporterError,
    },
    "one length": {"export": torch._dynamo.exc.UserError},
}
IMPORTANT = {  # besides all of eager: every way, and every form and kind of model in one of them
    ("compile", "padded", "BiGRUMHA"),
    ("compile", "lengths", "GRU"),
    ("export", "lengths", "GRU"),
    ("export", "lengths", "CGRU"),
    ("export", "packed, sorted", "GRU"),
    ("ONNX", "padded", "GRU, reset_after=False"),
    ("ONNX", "lengths", "GRU"),
}
NOT_SO = {"lengths": "no such argument", "packed": "takes waveforms", "packed, sorted": "takes waveforms"}


@cache
def speech() -> list[Tensor]:
    """Four utterances, real ones where the corpus lies beside the repository."""
    files = sorted((DATA / "emodb" / "wav").glob("*.wav"))[:4]
    if files:
        return [read_audio(file, 16000)[: 16000 + 2000 * place] for place, file in enumerate(files)]
    return [synthesize(emotion, 0, 0)[: 16000 + 2000 * place] for place, emotion in
            enumerate(("anger", "neutral", "sadness", "happiness"))]  # fmt: skip


def arguments(subject: str, form: str, seed: int) -> tuple:
    """Batches by seed: 1 is of other sizes than 0, which a graph with free sizes must serve; 2 of other lengths, but
    as many frames, rows and longest frames as 0, which any graph must serve."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(([7, 2, 5], [1, 11, 4, 8], [4, 7, 3])[seed])
    batch, frames = len(lengths), int(lengths.max())
    if subject in MODELS:
        waves = speech()[:3] if seed == 0 else speech()
        wave = nn.utils.rnn.pad_sequence(waves, batch_first=True)
        return (wave,) if form == "padded" else (wave, torch.tensor([len(one) for one in waves]))
    x = torch.randn(batch, frames, 5, generator=generator)
    if form == "padded":
        return (x,)
    if form == "lengths":
        return x, lengths
    if form == "packed":
        return (pack_padded_sequence(x, lengths, True, enforce_sorted=False),)
    return (pack_padded_sequence(x, lengths.sort(descending=True)[0], True),)


class WithLengths(nn.Module):
    """Arguments by position, as torch.export wants them."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x, lengths):
        return self.module(x, lengths=lengths)


def build(subject: str, form: str) -> nn.Module:
    torch.manual_seed(0)
    module = SUBJECTS[subject]().eval()
    return WithLengths(module) if form == "lengths" and subject not in MODELS else module


def floats(outputs) -> list[Tensor]:
    """The floating tensors of an output, of a packed sequence its data."""
    return [leaf for leaf in tree_leaves(outputs, is_leaf=lambda tree: isinstance(tree, PackedSequence))
            for leaf in (leaf.data if isinstance(leaf, PackedSequence) else leaf,) if leaf.is_floating_point()]  # fmt: skip


def assert_close(found, truth) -> None:
    """float32, the same sums in another order, or float64's: 1e-5 of the largest value."""
    for one, other in zip(found, truth, strict=True):
        assert float((one - other).abs().max()) <= 1e-5 * max(1.0, float(other.abs().max()))


def gradients(call, module: nn.Module, given: tuple) -> list[Tensor]:
    outputs = floats(call(*given))
    return list(torch.autograd.grad(sum(output.square().sum() for output in outputs), list(module.parameters())))


def free_sizes(subject: str, form: str):
    """Batch and time may change; a packed sequence's parts are of unnamed sizes."""
    if form.startswith("packed"):
        return None
    time = Dim("samples", min=2000) if subject in MODELS else Dim("frames")
    sizes = ({0: Dim("batch"), 1: time}, {0: Dim("batch")})
    return sizes[: 1 if form == "padded" else 2]


def compiled(module, given, subject, form):
    # The graph is the same whoever makes its code; inductor takes long over that, so it makes those with lengths
    # alone, but for convolutions, of which it makes new code for every size.
    backend = "inductor" if form == "lengths" and subject != "CGRU" else "aot_eager"
    return torch.compile(module, fullgraph=True, dynamic=True, backend=backend)


def exported(module, given, subject, form):
    return torch.export.export(module, given, dynamic_shapes=free_sizes(subject, form)).module()


def in_onnx(module, given, subject, form):
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        module, given, dynamo=True, verbose=False, dynamic_shapes=free_sizes(subject, form), external_data=False
    )
    assert {node.domain for node in program.model.graph} <= {"", "pkg.onnxscript.torch_lib"}
    resets = {node.attributes["linear_before_reset"].value for node in program.model.graph if node.op_type == "GRU"}
    forms = {int(part.reset_after) for part in module.modules() if isinstance(part, ser_fast.GRU)}
    assert subject == "nn.GRU" or resets == forms
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())

    def call(*given):
        tensors = [leaf for leaf in (part for value in given for part in
                   (value if isinstance(value, PackedSequence) else (value,))) if leaf is not None]  # fmt: skip
        names = [put.name for put in session.get_inputs()]
        outputs = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)})
        return [torch.from_numpy(output) for output in outputs]

    return call


def row_by_row(subject: str, form: str, module: nn.Module):
    """Eager's own truth: in float64, each row alone, without padding, and a GRU in torch's form by torch itself."""
    exact = copy.deepcopy(getattr(module, "module", module)).double()
    if isinstance(exact, ser_fast.GRU) and exact.reset_after:
        ours, exact = exact, SUBJECTS["nn.GRU"]().double().eval()
        for name, weight in ours.named_parameters():
            setattr(exact, name, weight)

    def call(given, lengths=None):
        if isinstance(given, PackedSequence):
            padded, lengths = pad_packed_sequence(given, batch_first=True)
        else:
            padded = given
        sizes = [padded.shape[1]] * len(padded) if lengths is None else lengths.tolist()
        outputs = [exact(row[None, :size].double()) for row, size in zip(padded, sizes)]
        if subject in MODELS:
            return torch.cat(outputs)
        y = nn.utils.rnn.pad_sequence([y[0] for y, _ in outputs], batch_first=True)
        h_n = torch.cat([h_n for _, h_n in outputs], dim=1)
        if not isinstance(given, PackedSequence):
            return y, h_n
        return pack_padded_sequence(y, lengths, True, enforce_sorted=given.sorted_indices is None), h_n

    return call, exact


MAKERS = {"eager": lambda module, *_: module, "compile": compiled, "export": exported, "ONNX": in_onnx}


def run(subject: str, way: str, form: str) -> str:
    """Return a cell of the table: the passes that ran and equal eager's; eager is compared with each row alone."""
    module, given = build(subject, form), arguments(subject, form, 0)
    fixed = way in ("export", "ONNX") and form.startswith("packed")  # those take one set of sizes
    other = arguments(subject, form, 2 if fixed else 1)
    call = MAKERS[way](module, given, subject, form)
    truth, owner = row_by_row(subject, form, module) if way == "eager" else (module, module)
    assert_close(floats(call(*given)), floats(truth(*given)))
    with torch.compiler.set_stance("fail_on_recompile"):
        found = floats(call(*other))
    assert_close(found, floats(truth(*other)))
    if way == "ONNX":
        return "forward"
    if way == "eager" and subject in MODELS:
        # In float64: rounding to float32 may cross a kink of the maxima over the convolution's outputs.
        module = copy.deepcopy(module).double()
        call, given = module, (given[0].double(), *given[1:])
    assert_close(gradients(call, module, given), gradients(truth, owner, given))
    return "forward, backward"


def cells() -> list[tuple[str, str, str]]:
    return list(itertools.product(WAYS, FORMS, SUBJECTS))


def read_table() -> dict[tuple[str, str, str], str]:
    rows = [[cell.strip().strip("`") for cell in line.strip("|\n ").split("|")]
            for line in TABLE.read_text().split("## Export")[0].splitlines() if line.startswith("|")]  # fmt: skip
    header, _, *body = rows
    return {(way, form, subject): cell for way, form, *found in body for subject, cell in zip(header[2:], found)}


def test_table_has_every_cell():
    table = read_table()
    assert set(table) == set(cells())
    assert all(table.values())


@pytest.mark.filterwarnings("ignore")  # torch's compilers and exporters warn of themselves
@pytest.mark.parametrize(
    "cell", important(cells(), lambda cell: cell in IMPORTANT or cell[0] == "eager"), ids="-".join
)
def test_table_cell(cell):
    way, form, subject = cell
    torch._dynamo.reset()
    says = read_table()[way, form, subject]
    if subject == "nn.GRU" and form == "lengths":
        assert says == NOT_SO["lengths"]
    elif subject in MODELS and form.startswith("packed"):
        assert says == NOT_SO[form]
    elif says in FAILURES:
        assert subject == "nn.GRU"
        with pytest.raises(FAILURES[says][way]):
            run(subject, way, form)
    elif subject == "nn.GRU" and way == "ONNX":
        # torch's export of nn.GRU depends on earlier exports in the same process.
        script = f"from graphs import test_graphs; print(test_graphs.run({subject!r}, {way!r}, {form!r}))"
        alone = subprocess.run(
            [sys.executable, "-c", script], cwd=Path(__file__).parents[1], capture_output=True, text=True
        )
        assert alone.stdout.splitlines()[-1:] == [says], alone.stderr
    else:
        assert run(subject, way, form) == says
