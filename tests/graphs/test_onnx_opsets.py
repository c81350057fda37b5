"""ONNX files at the opsets that a user may ask for: onnxruntime runs each of them.

docs/graphs.md shows the opset of each file; every cell is exported here and must be what the table says.
"""

import itertools
import logging
from pathlib import Path

import onnxruntime
import pytest
import torch
from selection import important
from torch import nn

import ser_fast

PAGE = Path(__file__).parents[2] / "docs/graphs.md"
OPSETS = ("15", "16", "17", "18", "20", "23")
BATCH, STEP = (torch.randn(2, 7, 5),), (torch.randn(3, 5), torch.randn(3, 6))
LENGTHS, WAVES = torch.tensor([7, 3]), (torch.randn(2, 4000), torch.tensor([4000, 3000]))
SUBJECTS = {
    "nn.GRU": (lambda: nn.GRU(5, 6, 2, batch_first=True, bidirectional=True), BATCH),
    "GRU": (lambda: ser_fast.GRU(5, 6, 2, batch_first=True, bidirectional=True), BATCH),
    "GRUCell": (lambda: ser_fast.GRUCell(5, 6, reset_after=False), STEP),
    "AttentionPool": (lambda: ser_fast.AttentionPool(5), (*BATCH, LENGTHS)),
    "PowerSpectrogram": (ser_fast.PowerSpectrogram, WAVES),
    "MelSpectrogram": (ser_fast.MelSpectrogram, WAVES),
    "BiGRUMHA": (lambda: ser_fast.BiGRUMHA(4, hidden_size=16), WAVES),
    "CGRU": (lambda: ser_fast.CGRU(4, hidden_size=16), WAVES),
}
IMPORTANT = {("15", "GRUCell"), ("15", "MelSpectrogram"), ("17", "GRU"), ("23", "BiGRUMHA")}


def read_table() -> dict[tuple[str, str], str]:
    lines = PAGE.read_text().split("## Export to ONNX")[1].splitlines()
    header, _, *rows = [
        [cell.strip(" `") for cell in line.strip("| ").split("|")] for line in lines if line[:1] == "|"
    ]
    return {(opset, subject): cell for opset, *cells in rows for subject, cell in zip(header[1:], cells, strict=True)}


def test_table_has_every_opset_and_subject():
    assert set(read_table()) == set(itertools.product(OPSETS, SUBJECTS))


@pytest.mark.filterwarnings("ignore")  # torch's exporter warns of itself
@pytest.mark.parametrize(
    "cell", important(itertools.product(OPSETS, SUBJECTS), lambda cell: cell in IMPORTANT), ids="-".join
)
def test_onnxruntime_runs_opset(cell):
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    opset, subject = cell
    make, given = SUBJECTS[subject]
    module = make().eval()
    program = torch.onnx.export(
        module, given, dynamo=True, verbose=False, external_data=False, opset_version=int(opset)
    )
    versions = {domain.domain: domain.version for domain in program.model_proto.opset_import}
    assert str(versions[""]) == read_table()[cell]
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    found = session.run(None, {put.name: value.numpy() for put, value in zip(session.get_inputs(), given)})
    truth = module(*given)
    torch.testing.assert_close(
        torch.from_numpy(found[0]), truth[0] if isinstance(truth, tuple) else truth, rtol=1e-4, atol=1e-4
    )
