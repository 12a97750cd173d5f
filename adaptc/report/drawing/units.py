"""Figures as people read them."""

from __future__ import annotations


def megabytes(size: float) -> str:
    """Bytes in the unit that suits, with three digits: "67.5 MB"."""
    for unit, each in (("GB", 1e9), ("MB", 1e6)):
        if size >= 0.9995 * each:
            return f"{three(size / each)} {unit}"
    return f"{three(size / 1e3)} KB" if size >= 1e3 else f"{size:.0f} bytes"


def three(value: float) -> str:
    """A number with three digits, or with all before the point: "0.0123", "4.56", "1234"."""
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def percent(share: float) -> str:
    """A share in percent: "28 %", with a digit after the point below 10."""
    return f"{share * 100:.1f} %" if 0 < share < 0.0995 else f"{share * 100:.0f} %"


def seconds(value: float) -> str:
    """Seconds in the unit that suits: "12.3 s", "4.56 ms", "78.9 µs"."""
    if not value:
        return "0 s"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{three(value / size)} {unit}"
    return f"{three(value * 1e6)} µs"
