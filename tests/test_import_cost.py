"""What an import of hubmeter costs the program that does it."""

import sys
from pathlib import Path

from observed import run, undisturbed  # noqa: F401

HEAVY = ["pyarrow", "numpy", "datasets", "huggingface_hub", "pynvml", "gradio", "grpc", "pandas",
         "duckdb", "plotly", "yaml", "click", "concurrent.futures.thread"]  # fmt: skip


def loaded_by(code: str) -> list[str]:
    """The heavy modules that *code* loads."""
    checked = f"{code}\nimport sys\nprint([m for m in {HEAVY} if m in sys.modules])"
    ended = run([sys.executable, "-c", checked])
    assert ended.returncode == 0, ended.stderr
    return eval(ended.stdout)


def test_importing_loads_nothing_heavy() -> None:
    """Not even the OpenTelemetry SDK: names are imported when they are used."""
    assert loaded_by("import hubmeter") == []
    assert loaded_by("import hubmeter, sys; assert 'opentelemetry' not in sys.modules") == []


def test_the_exporter_loads_nothing_that_its_sdk_does_not() -> None:
    """Arrow and its relatives are loaded when there is something to publish."""
    sdk = loaded_by("import opentelemetry.sdk.metrics.export")
    assert loaded_by("from hubmeter import HubMetricExporter, attach") == sdk


def test_an_export_loads_nothing_heavy() -> None:
    """What publishing needs is imported meanwhile, by another thread."""
    code = f"""
import sys, threading
from hubmeter import HubMetricExporter
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics import MeterProvider

class Watch:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is threading.main_thread():
            seen.append(name)

seen = []
reader = InMemoryMetricReader()
MeterProvider([reader]).get_meter("t").create_gauge("gen_ai.gpu.power", "W").set(1)
exporter = HubMetricExporter("data", pue=1)
sys.meta_path.insert(0, Watch())
exporter.export(reader.get_metrics_data())
sys.meta_path.pop(0)
print([name for name in {HEAVY} if name in seen])
"""
    assert run([sys.executable, "-c", code]).stdout == "[]\n"


def test_publishing_does_not_load_pandas(tmp_path: Path) -> None:
    """At the exit of a program that may not need it."""
    code = f"""
from hubmeter import HubMetricExporter
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.metrics import MeterProvider
exporter = HubMetricExporter({str(tmp_path / "data")!r})
provider = MeterProvider([PeriodicExportingMetricReader(exporter)])
provider.get_meter("m").create_counter("steps").add(1)
provider.shutdown()
"""
    loaded = loaded_by(code)
    assert list(tmp_path.glob("data/data/points/*/*.parquet"))
    assert ("pyarrow" in loaded, "pandas" in loaded) == (True, False)


def test_importing_costs_little_beyond_the_sdk(tmp_path: Path) -> None:
    """The budget is 30 ms of a machine at rest; this allows for caches that others use too."""
    assert _cpu_seconds("import hubmeter", tmp_path) <= 0.03
    assert _cpu_seconds("from hubmeter import HubMetricExporter", tmp_path) <= 0.1


def _cpu_seconds(statement: str, folder: Path) -> float:
    """The least of some, with compiled modules, as installed."""
    code = f"""
import opentelemetry.sdk.metrics.export, opentelemetry.sdk.resources, time
start = time.process_time()
{statement}
print(time.process_time() - start)
"""
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder)}
    tried = [run([sys.executable, "-c", code], **compiled) for _ in range(5)]
    return min(float(one.stdout) for one in tried)


def test_every_public_name_can_be_imported() -> None:
    """The names that the package promises exist, and others are an AttributeError."""
    code = """
import hubmeter
for name in hubmeter.__all__:
    assert callable(getattr(hubmeter, name)), name
assert set(hubmeter.__all__) <= set(dir(hubmeter))
assert hubmeter.__version__
try:
    hubmeter.nothing
except AttributeError as error:
    print(error)
"""
    ended = run([sys.executable, "-c", code])
    assert ended.stdout == "module 'hubmeter' has no attribute 'nothing'\n", ended.stderr
