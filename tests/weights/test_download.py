"""Downloads: complete, verified, resumed after an interruption, with clear errors."""

import base64
import concurrent.futures
import errno
import hashlib
import io
import json
import logging
import pathlib
import shutil
import socket
from collections.abc import Iterator

import numpy as np
import pytest

from remem_jax.checks import SettingError
from remem_jax.display import lines
from remem_jax.weights import catalog, download, resumable
from tests.weights import server

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])
CUT = 250_000  # In bytes: more than three chunks, and not a multiple of the chunk size.


@pytest.fixture
def npz(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    np.savez(file, kernel=rng.random(60_000), bias=rng.random(10))
    return file.getvalue()


@pytest.fixture
def site(npz: bytes) -> Iterator[server.Site]:
    with server.serving(server.Site({"/a.npz": npz})) as site:
        yield site


@pytest.fixture(autouse=True)
def _quick(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable, "_WAIT_SECONDS", 0.0)
    monkeypatch.setenv("REMEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("REMEM_MIRROR", raising=False)


def fetched(site: server.Site, tmp_path: pathlib.Path, mebibytes: float | None = None) -> bytes:
    download.fetch(f"{site.url}/a.npz", tmp_path / "a.npz", mebibytes=mebibytes)
    return (tmp_path / "a.npz").read_bytes()


def names(folder: pathlib.Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def refused(site: server.Site, tmp_path: pathlib.Path, mebibytes: float | None = None) -> str:
    with pytest.raises(SettingError) as caught:
        fetched(site, tmp_path, mebibytes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_download_leaves_only_the_complete_file(
    site: server.Site, npz: bytes, tmp_path: pathlib.Path
) -> None:
    assert fetched(site, tmp_path) == npz
    assert names(tmp_path) == {"a.npz", "a.npz.json"}


def test_the_source_of_a_file_is_recorded(
    site: server.Site, npz: bytes, tmp_path: pathlib.Path
) -> None:
    fetched(site, tmp_path)

    kept = json.loads((tmp_path / "a.npz.json").read_text())
    assert kept["date"].endswith("+00:00")
    assert kept["url"] == f"{site.url}/a.npz"
    assert kept["bytes"] == len(npz)
    assert kept["sha256"] == hashlib.sha256(npz).hexdigest()


def test_an_existing_file_is_not_requested(site: server.Site, tmp_path: pathlib.Path) -> None:
    fetched(site, tmp_path)
    fetched(site, tmp_path)

    assert len(site.requests) == 1


def test_a_locally_truncated_file_is_fetched_again(
    site: server.Site, npz: bytes, tmp_path: pathlib.Path
) -> None:
    fetched(site, tmp_path)
    (tmp_path / "a.npz").write_bytes(npz[:100])

    assert fetched(site, tmp_path) == npz


@pytest.mark.parametrize("validator", ["ETag", "Last-Modified"])
def test_an_interrupted_download_resumes(
    validator: str, site: server.Site, npz: bytes, tmp_path: pathlib.Path
) -> None:
    site.headers = {validator: "Mon, 01 Feb 2021 00:00:00 GMT"}
    site.if_range = validator == "ETag"
    site.cuts = [CUT]

    assert fetched(site, tmp_path) == npz

    first = int(site.requests[1]["Range"].removeprefix("bytes=").removesuffix("-"))
    assert CUT - 2**16 < first <= CUT
    assert site.requests[1]["If-Range"] == "Mon, 01 Feb 2021 00:00:00 GMT"
    assert names(tmp_path) == {"a.npz", "a.npz.json"}


def test_the_next_call_resumes_after_a_failed_one(
    site: server.Site, npz: bytes, tmp_path: pathlib.Path
) -> None:
    site.cuts, site.statuses = [CUT], [0, 403]
    refused(site, tmp_path)
    assert names(tmp_path) == {"a.npz.part", "a.npz.part.json"}

    assert fetched(site, tmp_path) == npz
    assert "Range" in site.requests[2]


def test_a_complete_part_is_not_requested(
    site: server.Site, npz: bytes, tmp_path: pathlib.Path
) -> None:
    site.cuts, site.statuses = [CUT], [0, 403]
    refused(site, tmp_path)
    (tmp_path / "a.npz.part").write_bytes(npz)

    assert fetched(site, tmp_path) == npz
    assert len(site.requests) == 2


def test_a_part_from_another_url_is_not_resumed(
    site: server.Site, npz: bytes, tmp_path: pathlib.Path
) -> None:
    site.cuts, site.statuses = [CUT], [0, 403]
    refused(site, tmp_path)
    site.files["/b.npz"] = npz

    download.fetch(f"{site.url}/b.npz", tmp_path / "a.npz")

    assert (tmp_path / "a.npz").read_bytes() == npz
    assert "Range" not in site.requests[2]


def test_without_ranges_the_download_restarts(
    site: server.Site, npz: bytes, tmp_path: pathlib.Path
) -> None:
    site.ranges, site.cuts = False, [CUT]

    assert fetched(site, tmp_path) == npz
    assert "Range" in site.requests[1]


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"weak"'}])
def test_a_file_without_a_strong_validator_is_not_resumed(
    headers: dict[str, str], site: server.Site, npz: bytes, tmp_path: pathlib.Path
) -> None:
    site.headers, site.cuts = headers, [CUT]

    assert fetched(site, tmp_path) == npz
    assert "Range" not in site.requests[1]


def test_a_part_that_cannot_be_resumed_is_removed(
    site: server.Site, tmp_path: pathlib.Path
) -> None:
    site.headers, site.cuts, site.statuses = {}, [CUT], [0, 403]

    refused(site, tmp_path)

    assert names(tmp_path) == set()


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("longer", [0, 1, 100])
def test_a_changed_file_is_not_appended_to_the_old_part(
    if_range: bool, longer: int, site: server.Site, npz: bytes, tmp_path: pathlib.Path
) -> None:
    site.cuts, site.statuses, site.if_range = [CUT], [0, 403], if_range
    refused(site, tmp_path)
    file = io.BytesIO()
    np.savez(file, other=np.full(60_000 + longer, 7.0))
    site.files["/a.npz"], site.headers = file.getvalue(), {"ETag": '"two"'}

    assert fetched(site, tmp_path) == file.getvalue()


def test_a_part_longer_than_the_file_is_discarded(
    site: server.Site, npz: bytes, tmp_path: pathlib.Path
) -> None:
    site.cuts, site.statuses = [CUT], [0, 403]
    refused(site, tmp_path)
    (tmp_path / "a.npz.part").write_bytes(npz + b"more")

    assert fetched(site, tmp_path) == npz
    assert [("Range" in request) for request in site.requests[2:]] == [
        True,
        False,
    ]  # The first is answered with 416.


def test_a_body_that_is_always_short_is_given_up(site: server.Site, tmp_path: pathlib.Path) -> None:
    site.headers, site.cuts = {}, [CUT] * 9

    assert "5 times in a row" in refused(site, tmp_path)
    assert len(site.requests) == 5
    assert names(tmp_path) == set()


def test_an_unknown_length_is_accepted(
    site: server.Site, npz: bytes, tmp_path: pathlib.Path
) -> None:
    site.lengths = False

    assert fetched(site, tmp_path) == npz


def test_truncation_without_a_length_is_detected_in_the_file(
    site: server.Site, tmp_path: pathlib.Path
) -> None:
    site.lengths, site.cuts = False, [CUT]

    assert "not an .npz file" in refused(site, tmp_path)
    assert names(tmp_path) == set()


def test_the_right_md5_is_accepted_over_two_connections(
    site: server.Site, npz: bytes, tmp_path: pathlib.Path
) -> None:
    digest = server.md5(npz)
    hashes = f"crc32c=AAAAAA==, md5={base64.b64encode(digest).decode()}"
    site.headers = {"ETag": f'"{digest.hex()}"', "x-goog-hash": hashes}
    site.cuts = [CUT]

    assert fetched(site, tmp_path) == npz


@pytest.mark.parametrize(
    "headers",
    [
        {"x-goog-hash": f"crc32c=AAAAAA==,md5={base64.b64encode(bytes(16)).decode()}"},
        {"Content-MD5": base64.b64encode(bytes(16)).decode()},
        {"ETag": f'"{bytes(16).hex()}"'},
    ],
    ids=lambda headers: next(iter(headers)),
)
def test_another_md5_is_refused(
    headers: dict[str, str], site: server.Site, tmp_path: pathlib.Path
) -> None:
    site.headers = headers

    assert f"should be {bytes(16).hex()}" in refused(site, tmp_path)
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": f'"{bytes(16).hex()}"', "x-amz-server-side-encryption": "aws:kms"},
        {"x-goog-hash": "md5=AAAAAAAAAAAAAAAAAAAAAA==", "x-goog-stored-content-encoding": "gzip"},
    ],
)
def test_a_header_that_only_resembles_an_md5_is_ignored(
    headers: dict[str, str], site: server.Site, npz: bytes, tmp_path: pathlib.Path
) -> None:
    site.headers = headers

    assert fetched(site, tmp_path) == npz


def test_a_flipped_bit_in_an_array_is_found(
    site: server.Site, npz: bytes, tmp_path: pathlib.Path
) -> None:
    broken = bytearray(npz)
    broken[CUT] ^= 1
    site.files["/a.npz"] = bytes(broken)

    assert "checksum of kernel.npy" in refused(site, tmp_path)
    assert names(tmp_path) == set()


def test_a_page_instead_of_a_file_is_refused(site: server.Site, tmp_path: pathlib.Path) -> None:
    site.files["/a.npz"] = b"<html>Please log in</html>"

    assert "not an .npz file" in refused(site, tmp_path)


def test_a_missing_file_is_requested_once(site: server.Site, tmp_path: pathlib.Path) -> None:
    del site.files["/a.npz"]

    assert "404 Not Found" in refused(site, tmp_path)
    assert len(site.requests) == 1
    assert names(tmp_path) == set()


def test_a_busy_server_is_retried(site: server.Site, npz: bytes, tmp_path: pathlib.Path) -> None:
    site.statuses = [503, 429]

    assert fetched(site, tmp_path) == npz
    assert len(site.requests) == 3


def test_progress_resets_the_count_of_failures(
    site: server.Site, tmp_path: pathlib.Path, rng: np.random.Generator
) -> None:
    site.files["/a.npz"] = content = rng.bytes(10 * 2**20)
    site.cuts = [2**20 + 2**17] * 8

    download.fetch(f"{site.url}/a.npz", tmp_path / "a.bin")

    assert (tmp_path / "a.bin").read_bytes() == content
    assert len(site.requests) == 9


def test_without_a_network_the_error_says_what_to_do(tmp_path: pathlib.Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        mirror = f"http://127.0.0.1:{unused.getsockname()[1]}"  # No server listens there.

        with pytest.raises(SettingError) as caught:
            download.obtain("augreg:Ti/16", mirror=mirror)

    path = catalog.PUBLISHED["augreg:Ti/16"].path
    message = str(caught.value)
    assert "\n" not in message
    assert "Connection refused" in message
    for advice in (
        f"{mirror}/{path}",
        f"{tmp_path}/cache/weights/{path}",
        "tools/fetch_weights.py",
        "REMEM_MIRROR",
        "config.teacher.init",
    ):
        assert advice in message


@pytest.mark.parametrize("url", ["http://", "http://[/a", "nothing://a/b"])
def test_an_invalid_url_is_refused(url: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(SettingError, match="Cannot fetch"):
        download.fetch(url, tmp_path / "a.npz")


@pytest.mark.parametrize("lengths", [True, False])
def test_a_size_far_from_the_catalogues_is_refused(
    lengths: bool, site: server.Site, npz: bytes, tmp_path: pathlib.Path
) -> None:
    site.lengths = lengths

    assert "and should have 1.0" in refused(site, tmp_path, mebibytes=1.0)
    assert names(tmp_path) == set()


def test_a_size_near_that_of_the_catalogue_is_accepted(
    site: server.Site, npz: bytes, tmp_path: pathlib.Path
) -> None:
    assert fetched(site, tmp_path, mebibytes=1.02 * len(npz) / 2**20) == npz


def test_a_full_disk_is_reported_before_the_download(
    site: server.Site, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**20))

    assert "the disk has 1 free; set REMEM_CACHE" in refused(site, tmp_path)
    assert names(tmp_path) == set()


def test_a_folder_that_cannot_be_made_is_named(site: server.Site, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(SettingError, match="Not a directory"):
        download.fetch(f"{site.url}/a.npz", tmp_path / "file/below/a.npz")


def test_only_one_of_several_processes_downloads(
    site: server.Site, npz: bytes, tmp_path: pathlib.Path
) -> None:
    site.seconds = 0.1

    with concurrent.futures.ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda _: fetched(site, tmp_path), range(4)))

    assert results == [npz] * 4
    assert len(site.requests) == 1
    assert names(tmp_path) == {"a.npz", "a.npz.json"}


def test_if_the_first_of_two_fails_the_second_tries(
    site: server.Site, npz: bytes, tmp_path: pathlib.Path
) -> None:
    site.seconds, site.statuses = 0.1, [403]

    with concurrent.futures.ThreadPoolExecutor() as pool:
        futures = [pool.submit(fetched, site, tmp_path) for _ in range(2)]

    errors = [future.exception() for future in futures]
    assert sorted(map(bool, errors)) == [False, True]
    assert (tmp_path / "a.npz").read_bytes() == npz


def test_progress_is_reported_in_bytes(
    site: server.Site, npz: bytes, tmp_path: pathlib.Path
) -> None:
    calls = []

    download.fetch(
        f"{site.url}/a.npz", tmp_path / "a.npz", progress=lambda *counts: calls.append(counts)
    )

    assert calls == sorted(calls)
    assert calls[-1] == (len(npz), len(npz))


@pytest.mark.parametrize("cuts", [[], [CUT]])
def test_a_download_is_a_stage_of_the_display(
    cuts: list[int],
    site: server.Site,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(lines, "_SECONDS", (0.0, 0.0))
    caplog.set_level(logging.INFO, "absl")
    site.cuts = cuts

    fetched(site, tmp_path)

    shown = [message for message in caplog.messages if "MiB" in message]
    assert shown[0] == "Download of a.npz, 0 of 1 MiB"
    assert shown[-1].startswith("Download of a.npz, 1 of 1 MiB")


def test_published_weights_are_fetched_from_a_mirror_into_the_cache(
    site: server.Site, npz: bytes, tmp_path: pathlib.Path
) -> None:
    site.files["/m/gsam/ViT-S_16.npz"] = npz

    path = download.obtain("gsam:S/16", mirror=f"{site.url}/m/")

    assert path == tmp_path / "cache/weights/gsam/ViT-S_16.npz"
    assert path.read_bytes() == npz


def test_weights_in_the_cache_need_no_network(npz: bytes) -> None:
    path = catalog.locate("gsam:S/16")
    path.parent.mkdir(parents=True)
    path.write_bytes(npz)  # As if copied by hand.

    assert download.obtain("gsam:S/16", mirror="http://127.0.0.1:9") == path


def test_a_mirror_that_is_a_folder_is_not_copied(npz: bytes, tmp_path: pathlib.Path) -> None:
    (tmp_path / "gsam").mkdir()
    (tmp_path / "gsam/ViT-S_16.npz").write_bytes(npz)

    path = download.obtain("gsam:S/16", mirror=str(tmp_path))

    assert path == tmp_path / "gsam/ViT-S_16.npz"
    assert names(tmp_path) == {"gsam"}


@pytest.mark.parametrize("init", ["gsam:S/16", "there_is_no.npz", "no.npz:img"])
def test_missing_weights_are_named(init: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(SettingError, match=r"(ViT-S_16|no)\.npz.*config\.teacher\.init"):
        download.obtain(init, mirror=str(tmp_path))


def test_a_local_file_is_used_unchanged(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.npz").touch()

    assert download.obtain(f"{tmp_path}/x.npz:img") == tmp_path / "x.npz:img"
    assert download.obtain("bundled:Ti/16").is_file()


def test_the_index_is_fetched_once(site: server.Site) -> None:
    site.files["/augreg/index.csv"] = (
        b"name,ds,final_val,filename,adapt_ds,adapt_resolution,adapt_final_val,adapt_filename\n"
        b"B/16,i1k,0.8,B_16-i1k-a,cifar100,224,0.9,B_16-i1k-a--cifar100\n"
    )

    picks = [catalog.pick(download.index_rows(mirror=site.url), "B/16", "i1k") for _ in range(2)]

    assert picks == [("augreg:B_16-i1k-a", 0.8)] * 2
    assert len(site.requests) == 1


def test_an_invalid_index_is_refused(site: server.Site) -> None:
    site.files["/augreg/index.csv"] = b"<html>Please log in</html>\n"

    with pytest.raises(SettingError, match="no column adapt_ds, "):
        list(download.index_rows(mirror=site.url))


@pytest.mark.parametrize("lengths", [True, False])
def test_a_file_of_unknown_size_has_a_limit(
    lengths: bool, site: server.Site, tmp_path: pathlib.Path
) -> None:
    site.lengths = lengths

    with pytest.raises(SettingError, match="it has more than 0 MiB: it is another file"):
        download.fetch(f"{site.url}/a.npz", tmp_path / "a.npz", most=CUT)

    assert names(tmp_path) == set()


def test_an_endless_response_is_aborted(site: server.Site, tmp_path: pathlib.Path) -> None:
    site.lengths, site.endless = False, True

    assert "or more, and should have 0.5: it is another file" in refused(site, tmp_path, 0.5)
    assert names(tmp_path) == set()


def test_the_index_has_its_own_size_limit(
    site: server.Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.files["/augreg/index.csv"] = b"name" * 100
    monkeypatch.setattr(download, "_LARGEST_INDEX", 99)

    with pytest.raises(SettingError, match="it has more than"):
        list(download.index_rows(mirror=site.url))


@pytest.mark.parametrize("make", ["symlink_to", "hardlink_to"])
def test_a_planted_link_is_not_followed(
    make: str, site: server.Site, npz: bytes, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "folder").mkdir()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    part = tmp_path / "folder" / "a.npz.part"
    getattr(part, make)(victim)
    state = {"url": f"{site.url}/a.npz", "validator": '"one"', "size": len(npz), "md5": ""}
    part.with_name("a.npz.part.json").write_text(json.dumps(state))

    download.fetch(f"{site.url}/a.npz", tmp_path / "folder" / "a.npz")

    assert victim.read_text() == "mine"
    assert (tmp_path / "folder" / "a.npz").read_bytes() == npz


def test_a_mirror_token_is_sent_but_not_logged(
    site: server.Site, npz: bytes, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    site.files["/m/gsam/ViT-S_16.npz?token=s3cr3t"] = npz
    site.statuses = [503]
    mirror = f"{site.url.replace('//', '//me:s3cr3t@')}/m/?token=s3cr3t"

    path = download.obtain("gsam:S/16", mirror=mirror)

    assert site.requests[-1]["Authorization"].startswith("Basic ")
    assert path.read_bytes() == npz
    assert "s3cr3t" not in path.with_name(f"{path.name}.json").read_text()


def test_a_download_with_a_token_resumes(
    site: server.Site, npz: bytes, tmp_path: pathlib.Path
) -> None:
    site.files["/a.npz?token=s3cr3t"] = npz
    site.cuts = [CUT]

    download.fetch(f"{site.url}/a.npz?token=s3cr3t", tmp_path / "a.npz")

    assert "Range" in site.requests[1]
    assert (tmp_path / "a.npz").read_bytes() == npz


def test_an_error_of_a_download_has_no_password(site: server.Site, tmp_path: pathlib.Path) -> None:
    url = f"{site.url.replace('//', '//me:s3cr3t@')}/none.npz?X-Amz-Signature=s3cr3t"

    with pytest.raises(SettingError) as caught:
        download.fetch(url, tmp_path / "a.npz")

    assert "404" in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("port", ["x", "1"])
def test_no_cause_of_the_http_library_has_a_password(port: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(SettingError) as caught:
        download.fetch(f"http://me:s3cr3t@127.0.0.1:{port}/a?token=s3cr3t", tmp_path / "a.npz")

    assert "s3cr3t" not in str(caught.value)


def test_a_read_only_cache_is_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "cache" / "a.npz"

    def mkdir(path: pathlib.Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(pathlib.Path, "mkdir", mkdir)

    with pytest.raises(SettingError, match=r"cache: Permission denied; set REMEM_CACHE to"):
        download.fetch("http://127.0.0.1:1/a.npz", place)
