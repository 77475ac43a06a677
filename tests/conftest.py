"""Eight simulated CPU devices, a cache of its own for the whole suite, and where the real data may be."""

import gc
import os
import sys
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Unoptimised, small programs compile in a tenth of the time and are run only a few times; XLA's fusion emitters and the
# splitting of a program over threads cost three quarters of what is left. The flag given last counts, so with
# XLA_FLAGS="--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true" the suite tests what users run.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1 " + os.environ.get("XLA_FLAGS", "")
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# One cache for the suite, and for the workers of pytest-xdist: many tests train the same small program.
os.environ.setdefault("JAXCNN_TEST_CACHE_DIR", tempfile.mkdtemp(prefix="jaxcnn-test-cache-"))
os.environ["JAXCNN_CACHE_DIR"] = os.environ["JAXCNN_TEST_CACHE_DIR"]
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(os.environ["JAXCNN_CACHE_DIR"], "compiled")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import pytest

ROOT = Path(__file__).resolve().parents[1]
# These begin first: a long file that begins last keeps one worker waiting for the other.
LONG_FILES = (
    "command",
    "loop",
    "finetune",
    "remote",
    "whole_run",
    "report",
    "streaming",
    "models",
    "parallel",
    "splits",
)


def pytest_configure(config):
    config.option.loadscopereorder = False  # pytest-xdist would begin with the files of the most tests


def pytest_collection_modifyitems(items):
    rank = {f"test_{name}": number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="session")
def tfds_dir() -> str:
    """Prepared mnist and cifar10: $JAXCNN_TEST_TFDS_DIR, else ../shared/data/tfds beside the project."""
    folder = Path(os.environ.get("JAXCNN_TEST_TFDS_DIR") or ROOT.parent / "shared" / "data" / "tfds")
    if not (folder / "mnist").is_dir():
        pytest.skip(f"no prepared data sets in {folder}; set JAXCNN_TEST_TFDS_DIR")
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_file():
    """Compiled programs are let go of after each file: a worker would come to hold gigabytes of them."""
    yield
    if "tests.runs" in sys.modules:
        sys.modules["tests.runs"].forget_built()
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.fixture(scope="module", autouse=True)
def tiny_model(request):
    """`model.name=tiny`, where a module trains small runs."""
    if not hasattr(request.module, "small_config"):
        yield
        return
    from jaxcnn.models import MODELS
    from tests.runs import TinyNet

    MODELS["tiny"] = TinyNet
    yield
    del MODELS["tiny"]
