"""The bill of materials of a template: CycloneDX 1.6, the same bytes for the same template."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, License
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.spdx import fixup_id
from packageurl import PackageURL

from builder.lock.model import Blob
from builder.pack.content import Member
from builder.pack.info import Info
from builder.pack.licences import deb_licences, wheel_licences


def render(info: Info, members: Sequence[Member], *, name: str, version: str, sha256: str, epoch: int) -> str:
    """The CycloneDX JSON of the template `name` `version`, whose file has the digest `sha256`.

    Every locked input is a component with its hash and where it can be had. The serial number is made from the
    digest and the timestamp is `epoch`, so that nothing in it depends on when it was made.
    """
    root = Component(
        name=name,
        version=version,
        type=ComponentType.CONTAINER,
        bom_ref="template",
        hashes=_hashes(sha256),
        properties=[
            Property(name="builder:recipe", value=info.recipe),
            Property(name="builder:recipe-digest", value=info.recipe_digest),
            *([Property(name="builder:variant", value=info.variant)] if info.variant else []),
        ],
    )
    components = [*_debs(info, members), *_wheels(info, members), *_urls(info)]
    bom = Bom(
        components=components,
        serial_number=uuid5(NAMESPACE_URL, f"sha256:{sha256}"),
        metadata=BomMetaData(component=root, timestamp=datetime.fromtimestamp(epoch, timezone.utc)),
    )
    bom.register_dependency(root, components)
    return make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1) + "\n"


def _debs(info: Info, members: Iterable[Member]) -> Iterator[Component]:
    licences = deb_licences(members)
    for deb in {deb.blob.sha256: deb for deb in info.debs}.values():
        purl = PackageURL(
            "deb",
            info.distribution,
            deb.name,
            deb.version,
            {"arch": deb.architecture, "distro": info.release},
        )
        yield Component(
            name=deb.name,
            version=deb.version,
            purl=purl,
            bom_ref=purl.to_string(),
            hashes=_hashes(deb.blob.sha256),
            licenses=[_named(short) for short in licences.get(deb.name, ())],
            external_references=_references(deb.blob),
        )


def _wheels(info: Info, members: Iterable[Member]) -> Iterator[Component]:
    licences = wheel_licences(members)
    make = LicenseFactory().make_from_string
    for wheel in {wheel.blob.sha256: wheel for wheel in info.wheels}.values():
        purl = PackageURL("pypi", None, wheel.name, wheel.version)
        said = licences.get((wheel.name, wheel.version), ())
        found: list[License] = [make(said[0])] if len(said) == 1 else [_named(licence) for licence in said]
        yield Component(
            name=wheel.name,
            version=wheel.version,
            purl=purl,
            bom_ref=f"{purl.to_string()}#{wheel.blob.filename}",
            hashes=_hashes(wheel.blob.sha256),
            licenses=found,
            external_references=_references(wheel.blob),
        )


def _urls(info: Info) -> Iterator[Component]:
    for name, blob in info.urls:
        yield Component(
            name=blob.filename,
            type=ComponentType.FILE,
            bom_ref=f"url:{name}",
            hashes=_hashes(blob.sha256),
            external_references=_references(blob),
        )


def _named(licence: str) -> DisjunctiveLicense:
    known = fixup_id(licence)
    return DisjunctiveLicense(id=known) if known else DisjunctiveLicense(name=licence)


def _hashes(sha256: str) -> list[HashType]:
    return [HashType(alg=HashAlgorithm.SHA_256, content=sha256)]


def _references(blob: Blob) -> list[ExternalReference]:
    return [ExternalReference(type=ExternalReferenceType.DISTRIBUTION, url=XsUri(url)) for url in blob.urls]
