"""A section's result in one line."""

from typing import Any

from benchmarks.harness.plot import short
from benchmarks.harness.process import Ended

Records = list[dict[str, Any]]


def headline(report: dict[str, Any] | None, ended: Ended) -> str:
    """Say what a section found, or why it found nothing."""
    lines = ended.output.splitlines()
    if report is None:
        return " ".join([ended.reason, *lines[-1:]]).strip()
    scripts = {
        "throughput": _fastest,
        "ablation": _gains,
        "methods": _methods,
        "checks": _checks,
        "kernels": _kernels,
        "timeline": _timeline,
        "roofline": _limits,
        "primitives": _efficiencies,
        "attack_strength": _attacks,
        "accuracy_parity": _parity,
        "loader": _fastest,
        "evaluation_speed": _fastest,
        "kernel_errors": _errors,
        "environment": _failures,
        "compile_ahead": _compiling,
        "prepare_images": _prepared,
        "minutes": _accuracies,
        "attack_run": _accuracies,
    }
    found = scripts.get(report["script"], _count)(report)
    return "; ".join(part for part in (found, _lost(report), ended.reason) if part)


def _of(report: dict[str, Any], unit: str) -> Records:
    return [one for one in report["records"] if one["unit"] == unit]


def _fastest(report: dict[str, Any]) -> str:
    rates = _of(report, "images/s")
    if not rates:
        return "nothing measured"
    best = max(rates, key=lambda one: float(one["value"]))
    gains = [one for one in _of(report, "times the first") if one["name"] == best["name"]]
    gain = f", {short(gains[0]['value'])} × the first" if gains else ""
    return f"{best['name']}: {short(best['value'])} images/s{gain}"


def _gains(report: dict[str, Any]) -> str:
    gains = _of(report, "times without it")
    return ", ".join(f"{one['name']} {short(one['value'])} ×" for one in gains) or _fastest(report)


def _methods(report: dict[str, Any]) -> str:
    gains = [one for one in _of(report, "times the first") if one["name"].startswith("fastpeer")]
    found = (f"{one['labels']['method']} {short(one['value'])} × in {one['name']}" for one in gains)
    return ", ".join(found) or "nothing measured"


def _checks(report: dict[str, Any]) -> str:
    failed = report["notes"].get("failed", [])
    return f"FAILED: {', '.join(failed)}" if failed else f"{len(report['records'])} passed"


def _kernels(report: dict[str, Any]) -> str:
    own = [one for one in _of(report, "µs") if one["name"].startswith("Triton, in a graph")]
    return ", ".join(f"{one['labels']['kernel']} {short(one['value'])} µs" for one in own) or _count(report)


def _timeline(report: dict[str, Any]) -> str:
    sums = {one["name"]: one["value"] for one in _of(report, "ms/step in all")}
    whole = [f"{one['name']}: {short(one['value'])} ms a step" for one in _of(report, "ms/step")]
    return ", ".join(whole) + "; kernels " + ", ".join(f"{short(value)} ms" for value in sums.values())


def _limits(report: dict[str, Any]) -> str:
    limits = _of(report, "FLOP/s") + _of(report, "B/s")
    return ", ".join(f"{one['name']} {short(one['value'] / 1e12)} T{one['unit']}" for one in limits)


def _efficiencies(report: dict[str, Any]) -> str:
    shares = [one["value"] for one in _of(report, "% of matrix product")]
    span = f"{short(min(shares))} to {short(max(shares))}" if shares else "nothing"
    return f"convolutions at {span} % of a matrix product"


def _attacks(report: dict[str, Any]) -> str:
    off = [one["value"] for one in _of(report, "% off the reference")]
    return f"loss reached off by {min(off):+.2f} to {max(off):+.2f} %" if off else ""


def _parity(report: dict[str, Any]) -> str:
    found = _of(report, "% under PGD-20, all seeds")
    return ", ".join(f"{one['name']} {one['value']:.2f} % under PGD-20" for one in found)


def _errors(report: dict[str, Any]) -> str:
    worst = max(report["records"], key=lambda one: float(one["value"]), default=None)
    return f"at most {worst['value']:.2f} {worst['unit']} ({worst['name']})" if worst else "nothing compared"


def _failures(report: dict[str, Any]) -> str:
    return f"{len(report['records']) - len(report['missing'])} of {len(report['records'])} as they should be"


def _compiling(report: dict[str, Any]) -> str:
    seconds = _of(report, "s to the first result")
    return ", ".join(f"{one['name']}: {one['value']:.0f} s to the first result" for one in seconds)


def _prepared(report: dict[str, Any]) -> str:
    return ", ".join(f"{one['name']} in {one['value']:.1f} {one['unit']}" for one in report["records"])


def _accuracies(report: dict[str, Any]) -> str:
    found = [one for one in report["records"] if one["unit"].startswith("% under")]
    return ", ".join(f"{one['value']:.2f} {one['unit']} of {one['labels']['images']}" for one in found)


def _count(report: dict[str, Any]) -> str:
    return f"{len(report['records'])} records"


def _lost(report: dict[str, Any]) -> str:
    names = [str(one["name"]) for one in report["missing"]]
    return f"not measured: {', '.join(names)}" if names else ""
