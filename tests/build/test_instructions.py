"""Tests of the instruction counts and budgets on small pieces of machine code."""

import pytest
from instructions import CLASSES, classify, excess, functions, label, loops, main_loops, readable, table, work


def code(*lines: str):
    """Return the instructions of one function, 16 bytes each, as cuobjdump prints them."""
    text = "".join(f"        /*{16 * place:04x}*/   {line} ;   /* 0x00ff */\n" for place, line in enumerate(lines))
    return functions(f'\t\tFunction : _Z3fooi\n\t.headerflags\t@"X"\n{text}\t\t..........\n')["_Z3fooi"]


def totals(*lines: str) -> list[int]:
    return [sum(loop.counts) for loop in loops(code(*lines))]


@pytest.mark.parametrize(
    ("opcode", "kind"),
    [
        ("HMMA.16816.F32", "HMMA"),
        ("MUFU.EX2", "MUFU"),
        ("FFMA", "FP"),
        ("HADD2.F32", "FP"),
        ("LDS.128", "shared"),
        ("SHFL.BFLY", "shared"),
        ("LDGSTS.E.BYPASS.128", "global"),
        ("STG.E.64", "global"),
        ("IMAD.WIDE", "other"),
        ("FLO.U32", "other"),
    ],
)
def test_instructions_have_classes(opcode, kind):
    assert classify(opcode) == kind


def test_loops_are_found_with_their_classes():
    found = loops(code("MOV R1, R2", "LDG.E R3, [R4.64]", "FADD R3, R3, R1", "@P0 BRA 0x10", "EXIT", "BRA 0x50"))
    assert [(loop.begin, loop.counts) for loop in found] == [(0x10, (0, 0, 1, 0, 1, 1))]
    assert totals("MOV R1, R2", "@P0 BRA 0x30", "FADD R1, R1, R1", "EXIT", "BRA 0x40") == []


@pytest.mark.parametrize("branch", ["BRA P1, 0x10", "BRA.U !UP0, 0x10", "BRA.DIV UR4, 0x10", "@!UP2 BRA 0x10"])
def test_loops_end_at_any_conditional_branch(branch):
    assert totals("NOP", "FADD R1, R1, R1", branch, "FADD R1, R1, R1", "EXIT") == [2]


def test_inner_loops_count_apart():
    lines = ("NOP", "FADD R1, R1, R1", "MUFU.EX2 R1, R1", "@P0 BRA 0x20", "@P1 BRA 0x10", "EXIT")
    outer, inner = loops(code(*lines))
    assert (sum(outer.counts), sum(outer.whole), outer.innermost) == (2, 4, False)
    assert (inner.counts, inner.whole, inner.innermost) == ((0, 1, 0, 0, 0, 1), inner.counts, True)


def test_blocks_placed_after_the_end_belong_to_their_loop():
    """A branch back from such a block into the middle of a loop is not a loop of its own."""
    lines = ("NOP", "@P0 BRA 0x50", "FADD R1, R1, R1", "@P1 BRA 0x10", "EXIT", "FMUL R1, R1, R1", "BRA 0x20")
    assert totals(*lines) == [5]
    lines = ("BSSY B0, 0x30", "@P0 BRA 0x50", "FADD R1, R1, R1", "@P1 BRA 0x0", "EXIT", "FMUL R1, R1, R1", "BSYNC B0")
    assert totals(*lines) == [6]


@pytest.mark.parametrize("branch", ["BRX R4 -0x20", "BRXU UR6 -0x20"])
def test_indirect_branches_lead_to_the_blocks_after_them(branch):
    lines = ("NOP", branch, "BRA 0x50", "FADD R1, R1, R1", "BRA 0x50", "@P0 BRA 0x10", "EXIT", "BRA 0x70")
    assert totals(*lines) == [5]


def test_main_loops_are_those_with_most_tensor_products():
    wait = ("LDS R3, [R4]", "@P0 BRA 0x10")
    step = ("NOP", *wait, "HMMA.16816.F32 R8, R4, R6, R8", "@P1 BRA 0x0", "FADD R1, R1, R1", "@P0 BRA 0x50", "EXIT")
    found = loops(code(*step))
    assert len(found) == 3 and main_loops(found) == [(1, 0, 0, 1, 0, 3)]
    assert main_loops(loops(code("FADD R1, R1, R1", "@P0 BRA 0x0", "EXIT"))) == [(0, 0, 1, 0, 0, 1)]


def test_labels_leave_out_namespaces_and_arguments():
    name = (
        "void ser_fast::(anonymous namespace)::run<ser_fast::GruCase<ser_fast::gpu::Half, ser_fast::GruSize{64, 1}, false>, "
        "true, ser_fast::GruForwardGpu<ser_fast::gpu::Half> >(ser_fast::GruForwardGpu<ser_fast::gpu::Half>)"
    )
    assert label(name) == "GruForward: run<GruCase<Half, GruSize{64, 1}, false>, true>"
    name = "void ser_fast::(anonymous namespace)::spectrogram<short>(ser_fast::SpectrogramGpu<short>)"
    assert label(name) == "Spectrogram: spectrogram<short>"


def test_excess_names_what_is_over_budget():
    row = [0, 1, 2, 3, 4, 5]
    budgets = {"a": {"80": [row]}}
    assert excess({"a": {"80": [row]}}, budgets) == []
    assert excess({"a": {"80": [[0, 0, 2, 3, 4, 5]]}}, budgets) == []
    assert excess({"a": {"80": [[0, 1, 3, 3, 4, 4]]}}, budgets) == ["a on 80, loop 0: 3 FP; the budget is 2"]
    assert excess({"a": {"80": [[0, 1, 2, 3, 4, 6]]}}, budgets)[1:] == [
        "a on 80, loop 0: 16 instructions; the budget is 15"
    ]
    assert excess({"a": {"80": [row, row]}}, budgets) == ["a on 80 has 2 loops; its budget is for 1"]
    assert excess({"a": {"120": [row]}, "b": {"80": []}}, budgets) == [
        "a on 120 has no budget",
        "b on 80 has no budget",
    ]
    assert excess({}, budgets) == ["a has a budget but is not built"]


def test_table_names_gru_kernels_in_words():
    sizes = "GruSize{256, 2, 16, 2, 22, 20}, (GruPass)1, false"
    found = readable(f"GruForward: run<GruCase<float, {sizes}>, true>")
    assert found == "GRU training, float32, H=256, 16 rows, cluster, reset_after=True"
    assert readable("PoolForward: merge<Half>") == "`PoolForward: merge<Half>`"


def test_table_gives_the_issue_bound_and_no_time():
    kernel, row = "GruForward: run<GruCase<Half, GruSize{128, 1, 8}, false>, true>", [24, 24, 100, 32, 0, 201]
    assert work(kernel, [row]) == ("step", 8 * 381, 4)
    shown = table({kernel: {"90a": [row]}}).splitlines()[-1]
    assert shown.endswith("| 381 | – | – | step | 0.38 µs | not measured |"), shown
    short, long = [0, 0, 1, 0, 0, 999], [0, 0, 100, 50, 0, 50]
    assert work("Spectrogram: spectrogram_by_warps<float, WarpSize<16, 16, 13>, true>", [short, long]) == (
        "frame",
        100,
        528,
    )
    assert work("PoolForward: forward<Half, 2, true>", [long, short]) == ("frame", 200, 528)
    assert work("PoolForward: merge<Half>", [long]) is None
    assert len(row) == len(CLASSES)
