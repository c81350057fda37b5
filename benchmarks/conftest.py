"""``pytest --benchmark`` runs the benchmarks instead of the tests; without it they are not collected."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import harness
import pytest
import torch

RATES = pytest.StashKey[dict]()  # rates of the machine that the floors used
PAUSE = 0.005  # seconds before a call, in which the waiting threads of the engine before it go to sleep
SHORT = 0.5  # seconds of all calls of a case, up to which a call is timed after another one, with warm caches


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
    """Keep the medians and drop the single times."""
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
def compare(benchmark, request, sgemm):
    """Return a function that times our call and its peers in turn, so that a change of the load affects all of them.

    A call follows a pause, since an engine's idle threads may keep a core busy for milliseconds, and if the case is
    short an untimed call.

    Ours goes through pytest-benchmark; the peers run in its setup, once before every round. There are as many rounds
    as fit into ``--benchmark-max-time``. The medians are stored in the case's ``extra_info``, which is returned.
    """
    benchmark.group = request.function.__doc__.splitlines()[0].rstrip(".")

    def run(
        case: str, ours: Callable, peers: dict[str, Callable], *, floor: float | None = None,
        operations: float | None = None, fewest: int = 5, **extra,
    ) -> dict:  # fmt: skip
        """Time one case.

        Args:
            case: name of the case.
            ours: our call.
            peers: other calls by name.
            floor: lower bound of the time, in seconds.
            operations: operations of the case; with the rate of a matrix product timed in the same rounds they give
                the floor.
            fewest: minimum number of rounds.
            extra: further entries of ``extra_info``.
        """
        times: dict[str, list[float]] = {name: [] for name in peers}
        products: list[float] = []
        short = False

        def prepare(call: Callable) -> None:
            time.sleep(PAUSE)
            if short:
                call()

        def time_peers() -> None:
            if operations and len(products) < 15:
                products.append(sgemm())
            for name, call in peers.items():
                prepare(call)
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
            prepare(ours)

        def time_ours() -> None:
            ours()  # discards the result within the round, as for the peers

        def one_round() -> float:
            start = time.perf_counter()
            time_peers()
            time_ours()
            return time.perf_counter() - start

        short = one_round() < SHORT
        fitting = int(float(request.config.getoption("benchmark_max_time")) / one_round())
        for values in (*times.values(), products):
            values.clear()
        benchmark.pedantic(time_ours, setup=time_peers, rounds=max(fewest, min(fitting, 100)))
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
