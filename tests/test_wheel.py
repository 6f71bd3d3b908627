"""The wheel holds all that a user needs: it is built, installed elsewhere and tried there."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.jobs import JOBS, ROOT, SEARCHES


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with the wheel; its dependencies are those of this one."""
    uv = shutil.which("uv")
    if not uv:
        pytest.skip("needs uv")
    folder = tmp_path_factory.mktemp("wheel")
    for words in (
        ["build", "--wheel", "--out-dir", str(folder), str(ROOT)],
        ["venv", "--python", sys.executable, str(folder / "venv")],
    ):
        subprocess.run([uv, *words], check=True, capture_output=True, text=True)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    install = [uv, "pip", "install", "--no-deps", "--python", str(python), str(wheel)]
    subprocess.run(install, check=True, capture_output=True, text=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python


def run(python: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python.with_name("raycnn")), *words], cwd=folder, capture_output=True, text=True
    )


def test_an_installed_raycnn_trains_the_quickstart_by_its_name(
    installed: Path, tmp_path: Path
) -> None:
    import raycnn

    done = run(installed, tmp_path, "--version")
    assert done.stdout == f"raycnn {raycnn.__version__}\n", done.stderr
    done = run(installed, tmp_path, "list", "models")
    assert done.returncode == 0 and "resnet18" in done.stdout, done.stderr
    done = run(installed, tmp_path, "train", "quickstart", "train.epochs=1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "quickstart" / "1" / "result.json").is_file()


def test_the_wheel_holds_every_job_its_license_and_the_types_and_no_tests(installed: Path) -> None:
    (site,) = (installed.parents[1] / "lib").glob("python*/site-packages")
    jobs = {path.name for path in (site / "raycnn" / "jobs").iterdir()}
    assert {path.name for path in [*JOBS, *SEARCHES]} <= jobs
    assert (site / "raycnn" / "py.typed").is_file()
    assert not (site / "tests").exists() and not list((site / "raycnn").rglob("test_*.py"))
    assert list(site.glob("raycnn-*.dist-info/licenses/LICENSE"))
