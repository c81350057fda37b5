"""``pytest --benchmark`` runs the benchmarks and nothing else; without it pytest leaves them alone."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import harness
import pytest
import torch

RATES = pytest.StashKey[dict]()  # the machine's, as far as this run's floors have needed them


def pytest_addoption(parser):
    parser.addoption("--benchmark", action="store_true", help="run the benchmarks instead of the tests")


def pytest_configure(config):
    if not config.getoption("benchmark"):
        return
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("--benchmark needs pytest-benchmark; type `pip install -e '.[bench]'`")
    config.addinivalue_line("filterwarnings", "default")  # a peer may warn
    if config.args_source == config.ArgsSource.TESTPATHS:
        config.args = [str(Path(__file__).parent)]


def pytest_ignore_collect(config):
    return None if config.getoption("benchmark") else True


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_generate_machine_info():
    return harness.machine()


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config, output_json):
    """The medians are kept, not every single time."""
    output_json["machine_info"] |= config.stash.get(RATES, {})
    for case in output_json["benchmarks"]:
        case["stats"].pop("data", None)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def sgemm(pytestconfig) -> harness.Sgemm:
    product = harness.Sgemm()
    rate = product.operations / min(product() for _ in range(11))
    pytestconfig.stash.setdefault(RATES, {})["sgemm"] = f"{rate / 1e9:.0f} GFLOP/s at best"
    return product


@pytest.fixture(scope="session")
def bandwidth(pytestconfig) -> float:
    rate = harness.copy_bandwidth()
    pytestconfig.stash.setdefault(RATES, {})["copy"] = f"{rate / 1e9:.0f} GB/s"
    return rate


@pytest.fixture
def race(benchmark, request, sgemm):
    """Times our call and its peers' in turns, so that a busy moment of the machine falls on all of them.

    Ours goes through pytest-benchmark; the peers run in its setup, once before every round. There are as many rounds
    as fit in ``--benchmark-max-time``. The medians go into the case's ``extra_info``, which is returned.
    """
    benchmark.group = request.function.__doc__.splitlines()[0].rstrip(".")

    def run(
        case: str, ours: Callable, peers: dict[str, Callable], *, floor: float | None = None,
        operations: float | None = None, fewest: int = 5, **extra,
    ) -> dict:  # fmt: skip
        """``floor`` is in seconds, or follows from the operations at the rate of a product timed in the same rounds,
        the first of them; ``fewest`` is in rounds, ``extra`` whatever else the report should know."""
        times: dict[str, list[float]] = {name: [] for name in peers}
        products: list[float] = []

        def their_turn() -> None:
            if operations and len(products) < 15:
                products.append(sgemm())
            for name, call in peers.items():
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)

        def our_turn() -> None:
            ours()  # the result is freed within the round, as the peers' are

        start = time.perf_counter()
        their_turn()
        our_turn()
        warm_up = time.perf_counter() - start
        for values in (*times.values(), products):
            values.clear()
        fitting = int(float(request.config.getoption("benchmark_max_time")) / warm_up)
        benchmark.pedantic(our_turn, setup=their_turn, rounds=max(fewest, min(fitting, 100)))
        if benchmark.enabled:
            seconds = {"ours": benchmark.stats.stats.median}
            seconds |= {name: statistics.median(values) for name, values in times.items()}
            ratios = {name: seconds[name] / seconds["ours"] for name in peers}
            benchmark.extra_info |= {"case": case, "seconds": seconds, "ratios": ratios, **extra}
            if operations:
                rate = sgemm.operations / statistics.median(products)
                floor = operations / rate
                benchmark.extra_info["sgemm"] = rate
            if floor is not None:
                benchmark.extra_info |= {"floor": floor, "fraction of floor": floor / seconds["ours"]}
        return benchmark.extra_info

    return run
