"""The report in a bundle: its two files, and how they are made anew when more was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from adaptc.report.page import report_html
from adaptc.report.record import Record, read_record, report_json
from adaptc.runtime.bundle.folder import Bundle, write_bundle
from adaptc.runtime.bundle.manifest import Manifest
from adaptc.runtime.bundle.names import PROFILE, REPORT, REPORT_PAGE
from adaptc.runtime.errors import BundleError
from adaptc.runtime.multimodal.profile import ModalProfile, read_profile


def report_files(manifest: Manifest, record: Record, profile: ModalProfile | None = None) -> dict[str, Path | bytes]:
    """`report.json` and `report.html`, by their names in a bundle."""
    page = report_html(manifest, record, profile)
    return {REPORT: report_json(manifest, record).encode(), REPORT_PAGE: page.encode()}


def record_of(bundle: Bundle) -> Record:
    """What a bundle's report says beyond the manifest; of a bundle without a report nothing.

    Raises:
        BundleError: `report.json` is damaged.
    """
    if not bundle.has(REPORT):
        return Record()
    content = bundle.read(REPORT)
    try:
        return read_record(content)
    except BundleError as error:
        raise BundleError(f"{bundle.path / REPORT}: {error}; compile again") from error


def renewed(bundle: Bundle, record: Record, profile: ModalProfile | None = None) -> Bundle:
    """Write a bundle anew with another report.

    Args:
        bundle: An opened bundle.
        record: What its report shall say.
        profile: A profile that is written with it; None leaves the one that is there.
    """
    files = report_files(bundle.manifest, record, profile or read_profile(bundle))
    if profile is not None:
        files[PROFILE] = profile.to_json().encode()
    return write_bundle(bundle.path, files, bundle.manifest, bundle, keep_built=True)


def with_added(record: Record, name: str, content: object) -> Record:
    """A record with what another command measured."""
    return replace(record, added={**record.added, name: content})
