"""The bill of materials of a template: CycloneDX 1.6, the same bytes for the same template."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from uuid import NAMESPACE_URL, UUID, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.dependency import Dependency
from cyclonedx.model.license import DisjunctiveLicense, License, LicenseAcknowledgement
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.spdx import fixup_id
from packageurl import PackageURL

from builder.lock.model import Blob
from builder.pack import rights
from builder.pack.content import Member
from builder.pack.info import Info
from builder.pack.licences import deb_licences, wheel_licences
from builder.pack.rights import May, Part
from builder.tree import Entry

_MAY = "builder:may-be-passed-on"


_STAND_IN = hashlib.sha256(b"the template's own digest").hexdigest()
"""In the place of what is known last."""


def finish(draft: str, sha256: str) -> str:
    """The CycloneDX JSON of the template whose file has the digest `sha256`, from its `draft`."""
    return draft.replace(_STAND_IN, sha256).replace(str(_serial_number(_STAND_IN)), str(_serial_number(sha256)))


def draft(info: Info, members: Sequence[Member], *, name: str, version: str, epoch: int) -> str:
    """All that can be said of the template `name` `version` before it is made; `finish` makes it whole.

    Every locked input is a component with its hash, where it can be had and whether it may be passed on (`rights`).
    The serial number is made from the digest and the timestamp is `epoch`: nothing in it depends on when it was made.
    """
    inputs = (*_debs(info, members), *_wheels(info, members), *_urls(info))
    for component, part in inputs:
        _tell(component, part)
    components = [component for component, _ in inputs]
    programs = list(filter(None, (_program(member.entry) for member in members)))
    root = Component(
        name=name,
        version=version,
        type=ComponentType.CONTAINER,
        bom_ref="template",
        hashes=_hashes(_STAND_IN),
        properties=[
            Property(name="builder:recipe", value=info.recipe),
            Property(name="builder:recipe-digest", value=info.recipe_digest),
            *([Property(name="builder:variant", value=info.variant)] if info.variant else []),
            Property(name=_MAY, value=rights.strictest((*(part for _, part in inputs), *programs)).value),
            *(Property(name="builder:own-use-only", value=f"/{program.name}") for program in programs),
        ],
    )
    parts = [Dependency(component.bom_ref) for component in components]
    bom = Bom(
        components=components,
        dependencies=[Dependency(root.bom_ref, parts), *parts],
        serial_number=_serial_number(_STAND_IN),
        metadata=BomMetaData(component=root, timestamp=datetime.fromtimestamp(epoch, timezone.utc)),
    )
    return make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1) + "\n"


def _serial_number(sha256: str) -> UUID:
    return uuid5(NAMESPACE_URL, f"sha256:{sha256}")


def _program(entry: Entry) -> Part | None:
    return rights.of_file(entry.path, entry.mode) if entry.type == "file" else None


def _tell(component: Component, part: Part) -> None:
    """Add what may be done with a component, and the licence that was found where a grant decides."""
    component.properties.add(Property(name=_MAY, value=part.may.value))
    if part.may is not May.YES:
        component.properties.add(Property(name="builder:terms", value=part.says))
    if part.grant:
        found = DisjunctiveLicense(name=part.licence, acknowledgement=LicenseAcknowledgement.CONCLUDED)
        component.licenses = [*map(_named, part.stated), found]


def _debs(info: Info, members: Iterable[Member]) -> Iterator[tuple[Component, Part]]:
    licences = deb_licences(members)
    for deb in {deb.blob.sha256: deb for deb in info.debs}.values():
        purl = PackageURL(
            "deb",
            info.distribution,
            deb.name,
            deb.version,
            {"arch": deb.architecture, "distro": info.release},
        )
        said = licences.get(deb.name, ())
        component = Component(
            name=deb.name,
            version=deb.version,
            purl=purl,
            bom_ref=purl.to_string(),
            hashes=_hashes(deb.blob.sha256),
            licenses=[_named(short) for short in said],
            external_references=_references(deb.blob),
        )
        yield component, rights.of_deb(deb.name, deb.version, said, deb.blob.urls)


def _wheels(info: Info, members: Iterable[Member]) -> Iterator[tuple[Component, Part]]:
    licences = wheel_licences(members)
    make = LicenseFactory().make_from_string
    for wheel in {wheel.blob.sha256: wheel for wheel in info.wheels}.values():
        purl = PackageURL("pypi", None, wheel.name, wheel.version)
        said = licences.get((wheel.name, wheel.version), ())
        found: list[License] = [make(said[0])] if len(said) == 1 else [_named(licence) for licence in said]
        component = Component(
            name=wheel.name,
            version=wheel.version,
            purl=purl,
            bom_ref=f"{purl.to_string()}#{wheel.blob.filename}",
            hashes=_hashes(wheel.blob.sha256),
            licenses=found,
            external_references=_references(wheel.blob),
        )
        yield component, rights.of_wheel(wheel.name, wheel.version, said)


def _urls(info: Info) -> Iterator[tuple[Component, Part]]:
    for name, blob in info.urls:
        component = Component(
            name=blob.filename,
            type=ComponentType.FILE,
            bom_ref=f"url:{name}",
            hashes=_hashes(blob.sha256),
            external_references=_references(blob),
        )
        yield component, rights.of_url(name, blob.filename)


def _named(licence: str) -> DisjunctiveLicense:
    known = fixup_id(licence)
    return DisjunctiveLicense(id=known) if known else DisjunctiveLicense(name=licence)


def _hashes(sha256: str) -> list[HashType]:
    return [HashType(alg=HashAlgorithm.SHA_256, content=sha256)]


def _references(blob: Blob) -> list[ExternalReference]:
    return [ExternalReference(type=ExternalReferenceType.DISTRIBUTION, url=XsUri(url)) for url in blob.urls]
