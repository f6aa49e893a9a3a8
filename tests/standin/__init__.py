"""
A driver library for machines without a GPU, and the hand that moves it.

The library in ``nvml_standin.c`` is loaded by the unmodified `pynvml`; nothing
of ours or of NVIDIA's is patched. It starts with two GPUs of 100 W, and a clock
that stands still until a test advances it.

GPUs are numbered as they sit in the machine, whatever `set_order` makes of their
NVML indices. Functions are named as in the driver, which differs from `pynvml`
for ``nvmlInitWithFlags`` (nvmlInit), ``nvmlDeviceGetCount_v2``,
``nvmlDeviceGetHandleByIndex_v2`` and ``nvmlDeviceGetMemoryInfo_v2``.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pynvml

__all__ = ["CompilerMissing", "StandIn", "compile_standin", "loaded", "subprocess_env"]

SOURCE = Path(__file__).with_name("nvml_standin.c")
LIBRARY_NAME = "libnvidia-ml.so.1"
MIB = 1 << 20


class CompilerMissing(RuntimeError):
    """There is no C compiler on this machine."""

    def __init__(self) -> None:
        super().__init__("stand-in driver not built: neither cc, gcc nor clang is installed")


def compile_standin(folder: Path, *, old_driver: bool = False, soname: bool = True) -> Path:
    """
    Build the library and say where it is.

    Args:
        folder: Where ``libnvidia-ml.so.1`` is written.
        old_driver: Leave out what drivers before 12.570 did not have.
        soname:
            Give the library its official inner name. Once such a library is in
            a process, every later search for the driver there ends at it.

    Raises:
        CompilerMissing: No C compiler was found.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise CompilerMissing
    library = folder / LIBRARY_NAME
    options = ["-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread"]
    if soname:
        options.append(f"-Wl,-soname,{LIBRARY_NAME}")
    if old_driver:
        options.append("-DOLD_DRIVER")
    subprocess.run([compiler, *options, "-o", str(library), str(SOURCE)], check=True)
    return library


def subprocess_env(path: Path, script_text: str, folder: Path) -> dict[str, str]:
    """
    Environment in which another program finds the stand-in as its driver.

    Args:
        path: What `compile_standin` returned.
        script_text: Commands to run as the library loads, one per line.
        folder: Where the script may be written.
    """
    script = folder / "standin.script"
    script.write_text(script_text, encoding="utf-8")
    inherited = os.environ.get("LD_LIBRARY_PATH")
    search_path = f"{path.parent}:{inherited}" if inherited else str(path.parent)
    return {**os.environ, "LD_LIBRARY_PATH": search_path, "STANDIN_SCRIPT": str(script)}


@contextmanager
def loaded(path: Path) -> Iterator["StandIn"]:
    """Point `pynvml` at a stand-in in its initial state, and back again."""
    standin = StandIn(path)
    standin.reset()
    before = (pynvml.nvmlLib, pynvml._nvmlLib_refcount, dict(pynvml._nvmlGetFunctionPointer_cache))
    _point_pynvml_at(ctypes.CDLL(str(path)), 0, {})
    try:
        yield standin
    finally:
        _point_pynvml_at(*before)


def _point_pynvml_at(
    library: ctypes.CDLL | None, refcount: int, functions: dict[str, object]
) -> None:
    pynvml.nvmlLib = library
    pynvml._nvmlLib_refcount = refcount
    pynvml._nvmlGetFunctionPointer_cache.clear()
    pynvml._nvmlGetFunctionPointer_cache.update(functions)


class StandIn:
    """
    What a test can do to the GPUs of a loaded stand-in, and ask about them.

    Args:
        path: What `compile_standin` returned.
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.standin_command.argtypes = [ctypes.c_char_p]
        self._library.standin_now_ns.restype = ctypes.c_int64
        self._library.standin_calls.argtypes = [ctypes.c_char_p, ctypes.c_int]
        self._library.standin_calls.restype = ctypes.c_uint64
        for energy in (self._library.standin_true_energy_mj, self._library.standin_true_energy_uj):
            energy.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
            energy.restype = ctypes.c_uint64

    def command(self, line: str) -> None:
        """Run one line as it may stand in a script."""
        if not self._library.standin_command(line.encode()):
            raise ValueError(f"stand-in refused: {line}")

    def reset(self) -> None:
        """Back to two default GPUs at time 0; no faults, no counts, not initialised."""
        self.command("reset")

    # -- time

    @property
    def now_s(self) -> float:
        """Time of the power schedule."""
        return int(self._library.standin_now_ns()) / 1e9

    def set_clock_s(self, now_s: float) -> None:
        self.command(f"clock_at {_ns(now_s)}")

    def advance_s(self, duration_s: float) -> None:
        self.command(f"advance {_ns(duration_s)}")

    def use_real_clock(self) -> None:
        """Time passes by itself; time 0 is when the library was loaded."""
        self.command("clock real")

    def use_manual_clock(self) -> None:
        self.command("clock manual")

    # -- machine

    def set_gpu_count(self, count: int) -> None:
        """Show the first *count* of 16 GPUs, in their natural order."""
        self.command(f"gpus {count}")

    def set_order(self, gpus: Sequence[int]) -> None:
        """Show these GPUs as NVML index 0, 1, ...; leave the others out."""
        self.command(f"order {' '.join(map(str, gpus))}")

    def set_strict_fork(self, on: bool = True) -> None:
        """Whether a child forked after nvmlInit gets Unknown for every call."""
        self.command(f"strict_fork {int(on)}")

    # -- power and energy

    def set_power_w(self, gpu: int, watts: float, at_s: float | None = None) -> None:
        """Draw *watts* from *at_s* (default: now) until the next step."""
        self.command(f"power {gpu} {self._at_ns(at_s)} {round(watts * 1e3)}")

    def set_power_mean_ms(self, gpu: int, window_ms: int) -> None:
        """Average nvmlDeviceGetPowerUsage and field 185 over this window; 0 is instant."""
        self.command(f"power_mean_ns {gpu} {window_ms * 1_000_000}")

    def set_power_period_ms(self, gpu: int, period_ms: int) -> None:
        """Refresh the power sensor only this often; 0 is always."""
        self.command(f"power_period_ns {gpu} {period_ms * 1_000_000}")

    def set_limit_w(self, gpu: int, watts: float) -> None:
        """Set the managed and the enforced power limit."""
        self.command(f"limit {gpu} {round(watts * 1e3)}")
        self.command(f"enforced_limit {gpu} {round(watts * 1e3)}")

    def set_energy_step_mj(self, gpu: int, step_mj: int) -> None:
        """Let the counter grow in steps of this size (a huge one: it stands still)."""
        self.command(f"energy_step {gpu} {step_mj}")

    def set_energy_period_ms(self, gpu: int, period_ms: int) -> None:
        """Refresh the counter only this often; 0 is always."""
        self.command(f"energy_period_ns {gpu} {period_ms * 1_000_000}")

    def set_energy_offset_mj(self, gpu: int, offset_mj: int) -> None:
        """What the counter shows at time 0, until it is reset."""
        self.command(f"energy_offset {gpu} {offset_mj}")

    def reset_energy_counter(self, gpu: int, at_s: float | None = None) -> None:
        """Let the counter start from 0 at *at_s* (default: now); the last reset counts."""
        self.command(f"reset_energy {gpu} {self._at_ns(at_s)}")

    def freeze_energy_counter(self, gpu: int, at_s: float | None = None) -> None:
        """Let the counter stand still from *at_s* (default: now)."""
        self.command(f"freeze_energy {gpu} {self._at_ns(at_s)}")

    # -- other readings

    def set_utilization(self, gpu: int, percent: int, memory_percent: int = 10) -> None:
        self.command(f"utilization {gpu} {percent}")
        self.command(f"memory_utilization {gpu} {memory_percent}")

    def set_memory_mib(
        self,
        gpu: int,
        *,
        used: float | None = None,
        total: float | None = None,
        reserved: float | None = None,
    ) -> None:
        """Change these; *used* excludes what the driver reserves."""
        for name, mib in (("used", used), ("total", total), ("reserved", reserved)):
            if mib is not None:
                self.command(f"memory_{name} {gpu} {round(mib * MIB)}")

    def set_temperature_c(self, gpu: int, celsius: int) -> None:
        self.command(f"temperature {gpu} {celsius}")

    def set_memory_temperature_c(self, gpu: int, celsius: int) -> None:
        """What field 82 reports."""
        self.command(f"memory_temperature {gpu} {celsius}")

    def set_clocks_mhz(self, gpu: int, *, sm: int | None = None, memory: int | None = None) -> None:
        for name, mhz in (("sm", sm), ("memory", memory)):
            if mhz is not None:
                self.command(f"clock_{name} {gpu} {mhz}")

    def set_fan_percent(self, gpu: int, percent: int) -> None:
        self.command(f"fan {gpu} {percent}")

    def set_throttle_mask(self, gpu: int, mask: int) -> None:
        """Set the clocks event (throttle) reasons bit mask."""
        self.command(f"throttle {gpu} {mask}")

    def set_performance_state(self, gpu: int, state: int) -> None:
        self.command(f"performance_state {gpu} {state}")

    def set_ecc_errors(
        self, gpu: int, count: int, *, uncorrected: bool = False, aggregate: bool = False
    ) -> None:
        """Set one of the four totals; corrected and volatile by default."""
        kind = "uncorrected" if uncorrected else "corrected"
        scope = "aggregate" if aggregate else "volatile"
        self.command(f"ecc_{kind}_{scope} {gpu} {count}")

    def set_field(
        self, gpu: int, field: int, *, error: int = 0, value_type: int | None = None
    ) -> None:
        """Let one field id fail, or report its value as another NVML value type."""
        self.command(f"field {gpu} {field} {error} {-1 if value_type is None else value_type}")

    # -- identity

    def set_name(self, gpu: int, name: str) -> None:
        self.command(f"name {gpu} {name}")

    def set_uuid(self, gpu: int, uuid: str) -> None:
        self.command(f"uuid {gpu} {uuid}")

    def set_architecture(self, gpu: int, architecture: int) -> None:
        self.command(f"architecture {gpu} {architecture}")

    def set_mig(self, gpu: int, instances: int | None) -> None:
        """
        Split the GPU into up to seven instances.

        0 switches MIG off, None makes a GPU that never heard of it. Instances
        are named ``MIG-00000000-0000-0000-000G-00000000000I`` unless renamed.
        """
        self.command(f"mig {gpu} {-1 if instances is None else instances}")

    def set_mig_uuid(self, gpu: int, instance: int, uuid: str) -> None:
        self.command(f"mig_uuid {gpu} {instance} {uuid}")

    # -- trouble

    def fault(
        self,
        func: str,
        *,
        gpu: int = -1,
        error: int = 0,
        after: int = 0,
        times: int = -1,
        sleep_us: int = 0,
    ) -> None:
        """
        Let calls of one function fail, or take their time, or both.

        Args:
            func: Name in the driver, or ``*`` for every function.
            gpu: Whose handle; -1 for any, MIG instances included.
            error: NVML return code; 0 lets the call succeed.
            after: So many matching calls pass first.
            times: So many calls are hit then; -1 for all.
            sleep_us: How long each call hit takes.

        Raises:
            ValueError: The stand-in has no such function.
        """
        self._assert_known(func)
        self.command(f"fault {func} {gpu} {error} {after} {times} {sleep_us}")

    def clear_faults(self) -> None:
        """Forget every fault; lost GPUs stay lost."""
        self.command("clear_faults")

    def lose(self, gpu: int) -> None:
        """From now on every call for this GPU says GPU_IS_LOST."""
        self.command(f"lose {gpu}")

    def restore(self, gpu: int) -> None:
        self.command(f"restore {gpu}")

    # -- questions

    def calls(self, func: str, gpu: int | None = None) -> int:
        """How often *func* was called, or called for this GPU's own handle."""
        self._assert_known(func)
        return int(self._library.standin_calls(func.encode(), -1 if gpu is None else gpu))

    @property
    def refcount(self) -> int:
        """How many nvmlInit have not met their nvmlShutdown."""
        return int(self._library.standin_refcount())

    def true_energy_mj(self, gpu: int, from_s: float, to_s: float) -> int:
        """Exact integral of the schedule, rounded down; blind to every fault."""
        return int(self._library.standin_true_energy_mj(gpu, _ns(from_s), _ns(to_s)))

    def true_energy_uj(self, gpu: int, from_s: float, to_s: float) -> int:
        """As `true_energy_mj`, in microjoules."""
        return int(self._library.standin_true_energy_uj(gpu, _ns(from_s), _ns(to_s)))

    def true_energy_j(self, gpu: int, from_s: float, to_s: float) -> float:
        """As `true_energy_uj`, in joules."""
        return self.true_energy_uj(gpu, from_s, to_s) / 1e6

    def _at_ns(self, at_s: float | None) -> int:
        return int(self._library.standin_now_ns()) if at_s is None else _ns(at_s)

    def _assert_known(self, func: str) -> None:
        if func != "*" and not hasattr(self._library, func):
            raise ValueError(f"stand-in has no function {func}")


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
