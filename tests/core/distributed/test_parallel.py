"""Two processes compute what one does, hold only their parts, and their checkpoints go on in any arrangement."""

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmflow.testing.tiny import tiny_module

WORKER = Path(__file__).with_name("parallel_worker.py")
DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
needs_deepspeed = pytest.mark.skipif(
    not DEEPSPEED,
    reason="DeepSpeed is not installed (pip install 'lmflow-core[deepspeed]')",
)
OF_TORCH, OF_DEEPSPEED = ("ddp", "fsdp"), ("zero1", "zero2", "zero3")
STRATEGIES = [*OF_TORCH, *(pytest.param(name, marks=needs_deepspeed) for name in OF_DEEPSPEED)]
SPLITTING = ("fsdp", "zero3")
BESIDE: dict[str, dict[str, bool]] = {
    "lora": {"lora": True},
    "head": {"head": True},
    "lora and head": {"lora": True, "head": True},
}
STEPS, HALF = 8, 4
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("parallel")]


class Work:
    """Trainings of one model on the same 31 samples, each in processes of its own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        tiny_module("llama", 300).save_pretrained(place / "model")
        draw = random.Random(0)
        self.rows = []
        for i in range(31):  # in sixes over two processes: the last step has one sample, so one process is idle in it
            length = draw.randint(4, 24)
            prompt = draw.randint(1, length - 1)
            ids = [draw.randint(3, 299) for _ in range(length)]
            self.rows.append([ids, [j >= prompt for j in range(length)], f"s{i}"])

    def order(
        self, strategy: str, name: str, *, until: int, lora: bool = False, head: bool = False, origin: str | None = None
    ) -> dict[str, Any]:
        """A training up to a step, from the checkpoint in `name`, or else in a copy of `origin`, if there is one.

        With `lora` of adapters, with `head` of a value head beside the rest.
        """
        return {
            "model": str(self.place / "model"),
            "sequences": self.rows,
            "options": {
                "batch_size": 6,
                "micro_batch_size": 2,
                "learning_rate": 3e-3,
                "max_grad_norm": 0.5,
            },
            "checkpoints": str(self.place / name),
            "origin": origin and str(self.place / origin),
            "strategy": strategy,
            "warmup": 2,
            "planned": STEPS,
            "until": until,
            "lora": lora,
            "head": head,
            "found": str(self.place / f"{name}-{until}.json"),
        }

    def carry_out(self, processes: int, *orders: dict[str, Any]) -> list[dict[str, Any]]:
        """What the main process found in each training."""
        file = self.place / "orders.json"
        file.write_text(json.dumps(orders))
        launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--rdzv_backend=c10d"]
        launcher += ["--rdzv_endpoint=localhost:0"]
        command = [sys.executable, *(launcher if processes > 1 else []), str(WORKER), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
        assert done.returncode == 0, done.stderr[-5000:]
        found = [json.loads(Path(order["found"]).read_text()) for order in orders]
        assert all(each["processes"] == processes for each in found)
        return found


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work(tmp_path_factory.mktemp("parallel"))


@pytest.fixture(scope="module")
def alone(work: Work) -> dict[str, Any]:
    """One process, all steps; its checkpoint at half the steps is in `half`."""
    [first, rest, *others] = work.carry_out(
        1,
        work.order("ddp", "half", until=HALF),
        work.order("ddp", "alone", until=STEPS, origin="half"),
        *(work.order("ddp", f"{name}-one", until=3, **parts) for name, parts in BESIDE.items()),
    )
    joined = {name: first[name] + rest[name] for name in ("losses", "norms")}
    return {**rest, **joined, **dict(zip(BESIDE, others, strict=True))}


class Found:
    """What trainings by one strategy found, each up to a step: begun and gone on with by one process or by two."""

    def __init__(self, strategy: str, in_two: list[dict[str, Any]], one_goes_on: dict[str, Any]) -> None:
        self.together, self.two_go_on, *others = in_two
        self.one_goes_on = one_goes_on
        self.beside = dict(zip(beside(strategy), others, strict=True))


def beside(strategy: str) -> list[str]:
    """What else is trained by a strategy: adapters only where weights are split, which is what they differ in."""
    return [name for name, parts in BESIDE.items() if strategy in SPLITTING or "lora" not in parts]


@pytest.fixture(scope="module")
def found_by(work: Work, alone: dict[str, Any]) -> dict[str, Found]:
    """The trainings of all strategies, one after the other in the same processes, which import once."""
    orders = {}
    for strategy in [*OF_TORCH, *(OF_DEEPSPEED if DEEPSPEED else ())]:
        orders[strategy] = [
            work.order(strategy, f"{strategy}-two", until=HALF),
            work.order(strategy, f"{strategy}-one", until=STEPS, origin="half"),
        ]
        orders[strategy] += [
            work.order(strategy, f"{strategy}-{name}-two", until=3, **BESIDE[name]) for name in beside(strategy)
        ]
    in_two = iter(work.carry_out(2, *(order for each in orders.values() for order in each)))
    in_one = work.carry_out(1, *(work.order("ddp", f"{strategy}-two", until=STEPS) for strategy in orders))
    return {
        strategy: Found(strategy, [next(in_two) for _ in each], goes_on)
        for (strategy, each), goes_on in zip(orders.items(), in_one, strict=True)
    }


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_equal_one_and_continue_each_other(
    strategy: str, found_by: dict[str, Found], alone: dict[str, Any]
):
    found = found_by[strategy]
    assert found.together["losses"] == pytest.approx(alone["losses"][:HALF], rel=1e-5)
    for name in ("losses", "norms"):  # the first step's, which no optimizer has come between
        assert found.together[name][0] == pytest.approx(alone[name][0], rel=1e-6)
    split = alone["optimizer_here"] / found.together["optimizer_here"]
    assert split == pytest.approx(1 if strategy == "ddp" else 2, rel=0.01)
    if strategy in SPLITTING:
        assert found.together["parameters_here"] == pytest.approx(alone["parameters_here"] / 2, rel=0.01)
    assert found.two_go_on["losses"] == pytest.approx(alone["losses"][HALF:], rel=1e-5)
    assert found.two_go_on["sums"] == pytest.approx(alone["sums"], abs=1e-3)
    for name, trained in found.beside.items():
        for figures in ("losses", "value_errors"):
            assert trained[figures] == pytest.approx(alone[name][figures], rel=1e-5)
        assert trained["sums"] == pytest.approx(alone[name]["sums"], abs=1e-3)
    assert found.one_goes_on["losses"] == pytest.approx(alone["losses"][HALF:], rel=1e-5)
    assert found.one_goes_on["sums"] == pytest.approx(alone["sums"], abs=1e-3)
