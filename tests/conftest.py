"""What all tests share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import Distribution, distribution, distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

with suppress(ImportError):  # torch.compile imports it, which fails where something has imported distutils before
    import setuptools  # noqa: F401

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # what a shell starts in the background, and all it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Where bytecode is not kept, each of the hundreds of processes that tests start compiles all of lmflow anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).parent.parent
WARM = Path(__file__).parent / "warm"
SHARED_DATA = ROOT.parent / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` skip, saying so, where there is no GPU; groups come first, since one worker does a whole one."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items:
        import torch

        if not torch.cuda.is_available():
            for item in gpu_items:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Two cores shared by parallel workers: more threads only get in each other's way."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real records beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real records of ../shared/data are not here")
    return SHARED_DATA


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """See `lmflow.testing.tiny.tiny_tokenizer`."""
    from lmflow.testing.tiny import tiny_tokenizer

    return tiny_tokenizer


@pytest.fixture(scope="session")
def make_llama() -> Callable[..., Any]:
    """See `lmflow.testing.tiny.tiny_module`."""
    from lmflow.testing.tiny import tiny_module

    return partial(tiny_module, "llama")


@pytest.fixture
def tiny_model() -> Any:
    """A fresh LanguageModel around the tiny Llama."""
    from lmflow.testing.tiny import tiny_model

    return tiny_model()


@pytest.fixture(scope="session")
def model_directory(
    tmp_path_factory: pytest.TempPathFactory, make_llama: Callable[..., Any], make_tokenizer: Callable[..., Any]
) -> Path:
    """The tiny model saved as Transformers saves models."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = make_tokenizer()
    make_llama(len(tokenizer)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests, and the commands they start, keep tokens elsewhere than their user."""
    os.environ["LMFLOW_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tower_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny vision tower for open_clip: 2 x 2 patches, which are four image tokens of 24 numbers."""
    vision = {"image_size": 16, "layers": 2, "width": 24, "head_width": 12, "patch_size": 8}
    file = tmp_path_factory.mktemp("tower") / "tower.json"
    file.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision}))
    return file


@pytest.fixture(scope="session")
def without_deepspeed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory that, on PYTHONPATH, hides DeepSpeed, which accelerate imports wherever a model is saved."""
    place = tmp_path_factory.mktemp("without")
    (place / "sitecustomize.py").write_text("import sys\nsys.modules['deepspeed'] = None\n")
    return str(place)


@dataclass(frozen=True)
class Environment:
    """A Python environment of its own in `path`, with a real pip that has no network."""

    path: Path

    @property
    def packages(self) -> Path:
        """Its site-packages."""
        return Path(sysconfig.get_path("purelib", "venv", {"base": str(self.path)}))

    def command(self, name: str) -> Path:
        """The path of one of its commands."""
        return self.path / "bin" / name

    @property
    def real_python(self) -> Path:
        """Its Python, which is another than `python` where that starts warm."""
        return self.command("python{}.{}".format(*sys.version_info))

    @property
    def variables(self) -> dict[str, str]:
        """What a shell in which the environment is activated has, and a home of its own."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
        return inherited | {
            "HOME": str(self.path / "home"),
            "PATH": f"{self.path / 'bin'}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            # A build without isolation finds hatchling among the packages, where an isolated one would download it.
            "PIP_NO_BUILD_ISOLATION": "false",
            "PIP_NO_INDEX": "1",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def run(self, *command: str | Path, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment's; fails, with what it printed, unless it exits with `code`."""
        words = [str(word) for word in command]
        done = subprocess.run(words, cwd=cwd, env=self.variables, capture_output=True, text=True, check=False)
        said = f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == code, said
        return done


@pytest.fixture(scope="session")
def warm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str | None]:
    """The address of a process that has imported the libraries (warm/server.py); None where there can be none."""
    if not hasattr(os, "pidfd_open"):
        yield None
        return
    address = str(tmp_path_factory.mktemp("warm") / "socket")
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }  # as the launcher's processes have
    with subprocess.Popen(
        [sys.executable, WARM / "server.py", address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield address


@pytest.fixture(scope="session")
def make_environment(tmp_path_factory: pytest.TempPathFactory, warm_server: str | None) -> Callable[..., Environment]:
    """Makes an Environment that holds this one's packages, as links, but for the distributions named in `without`.

    DeepSpeed is left out too, as it is where most users are: accelerate imports it wherever a model is saved, which
    takes seconds of each run. Nothing done in it reaches this one: pip refuses to remove what lies behind a link. Its
    Python starts warm.
    """

    def make(*, without: Sequence[str] = ()) -> Environment:
        environment = Environment(tmp_path_factory.mktemp("environment"))
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment.path], check=True)
        if warm_server is not None:
            warm_up(environment, warm_server)
        link_packages(environment, [*without, *(["deepspeed"] if find_spec("deepspeed") else [])])
        add_pip(environment)
        add_commands(environment, distributions(path=[str(environment.packages)]))
        return environment

    return make


@pytest.fixture(scope="session")
def shared_environment(make_environment: Callable[..., Environment]) -> Environment:
    """An environment with everything, into which no test installs anything: its commands start warm."""
    return make_environment()


def warm_up(environment: Environment, server: str) -> None:
    """Have its `python` ask a warm server; its real one keeps the name with the version."""
    python, short, real = environment.command("python"), environment.command("python3"), environment.real_python
    base = python.resolve()
    for each in (python, short, real):
        each.unlink()
    real.symlink_to(base)
    short.symlink_to(python)
    start = f"import sys\nsys.path.insert(0, {str(WARM)!r})\nfrom client import main\nmain({server!r}, {str(real)!r})\n"
    python.write_text(f"#!{real} -IS\n{start}")
    python.chmod(0o755)


def link_packages(environment: Environment, without: Iterable[str]) -> None:
    """Link to everything in this Python's site-packages that does not belong to a distribution in `without`."""
    hidden = {Path(file).parts[0] for name in without for file in distribution(name).files or ()}
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        ours = entry.name == "pip" or entry.name.startswith("pip-")  # a pip of its own is unpacked there
        if entry.name not in {"__pycache__", *hidden} and not ours:
            (environment.packages / entry.name).symlink_to(entry)


def add_pip(environment: Environment) -> None:
    """Unpack the pip that comes with Python; `python -m ensurepip` does the same in ten times the time."""
    import ensurepip

    [wheel] = (Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(environment.packages)


def add_commands(environment: Environment, installed: Iterable[Distribution]) -> None:
    """Write the commands of distributions that were put there without pip."""
    for each in installed:
        for point in each.entry_points.select(group="console_scripts"):
            command = environment.command(point.name)
            start = f"import sys\nfrom {point.module} import {point.attr}\nsys.exit({point.attr}())\n"
            command.write_text(f"#!{environment.command('python')}\n{start}")
            command.chmod(0o755)


HOLDING = """
import os, select, signal, socket
from pathlib import Path
from lmflow.hookspecs import hookimpl

LMFLOW_INTERFACE = 2
PLACE = Path(__file__).parent


@hookimpl
def lmflow_step_finished(step):
    if step != 8:
        return
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    before = signal.set_wakeup_fd(wakes.fileno())
    (PLACE / "held").touch()
    while PLACE.exists() and not (PLACE / "let-go").exists() and not select.select([woken], [], [], 0.05)[0]:
        pass
    signal.set_wakeup_fd(before)
"""


@dataclass(frozen=True)
class Hold:
    """A plugin that holds a run after its eighth step until a signal comes or `let_go` is called.

    So a run is interrupted where the test means to, however fast it is and however busy the machine.
    """

    place: Path

    @property
    def variables(self) -> dict[str, str]:
        """What brings the plugin into a process."""
        return {"PYTHONPATH": str(self.place)}

    def wait(self, process: subprocess.Popen[str]) -> None:
        """Return once the run that `process` carries out is held; fails if it ends before."""
        while not (self.place / "held").exists():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)

    def let_go(self) -> None:
        """Let the run go on."""
        (self.place / "let-go").touch()


@pytest.fixture
def hold(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hold]:
    """See `Hold`; what is still held when the test ends is let go."""
    place = tmp_path_factory.mktemp("hold")
    (place / "holding.py").write_text(HOLDING)
    about = place / "holding-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: holding\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[lmflow]\nmain = holding\n")
    made = Hold(place)
    yield made
    made.let_go()
