"""Where the files of published networks lie, and what is held against them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from upsnet.errors import InputError
from upsnet.files import WriteError
from upsnet.zoo.networks import CC_BY_SA, NETWORKS, NON_COMMERCIAL, find_network
from upsnet.zoo.weights import Sums, cache_folder, cached, checked, place_of, sums_of

CONTENT = b"weights"
MD5, SHA256 = hashlib.md5(CONTENT).hexdigest(), hashlib.sha256(CONTENT).hexdigest()
NETWORK = NETWORKS["panoptic_fpn_r50_1x"]._replace(md5=MD5[:6], file="model.pkl")


def fetch(place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(CONTENT)


def never(place: Path) -> None:
    raise AssertionError(f"{place} was to be fetched")


def test_the_table_is_what_their_authors_publish() -> None:
    zoo = {name: each for name, each in NETWORKS.items() if each.licence is CC_BY_SA}
    assert [each.pq.partition(",")[0] for each in zoo.values()] == ["39.4", "41.5", "43.0"]
    for each in zoo.values():
        assert each.address and each.address.startswith("https://dl.fbaipublicfiles.com/detectron2/")
        assert each.address.endswith(f"/model_final_{each.md5}.pkl") and len(each.md5) == 6
        assert each.megabytes in (184, 260)  # 46.08 and 65.12 million numbers of four bytes
    others = [each for each in NETWORKS.values() if each.licence is NON_COMMERCIAL]
    assert len(others) == 4 and not any(each.address for each in others)


def test_its_configurations_are_there(project_root: Path) -> None:
    for each in NETWORKS.values():
        assert (project_root / "training/configs" / each.config).is_file()


def test_an_unknown_name() -> None:
    with pytest.raises(InputError, match=r"^resnet: no network of that name; there are panoptic_fpn_r50_1x, "):
        find_network("resnet")


def test_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UPSNET_CACHE", str(tmp_path / "named"))
    assert cache_folder(tmp_path) == tmp_path and cache_folder() == tmp_path / "named"
    monkeypatch.delenv("UPSNET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "upsnet-trt/weights"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError))
    with pytest.raises(InputError, match=r"no home folder .*: give --cache FOLDER, or set UPSNET_CACHE"):
        cache_folder()


def test_it_is_fetched_once_and_its_sha256_recorded(tmp_path: Path) -> None:
    weights = cached("x", NETWORK, tmp_path, fetch)
    assert weights.file == place_of("x", NETWORK, tmp_path) == tmp_path / "x/model.pkl"
    assert weights.sums == Sums(MD5, SHA256)
    assert (tmp_path / "x/model.pkl.sha256").read_text() == f"{SHA256}  model.pkl\n"
    assert cached("x", NETWORK, tmp_path, never) == weights


def test_another_md5_is_set_aside(tmp_path: Path) -> None:
    other = NETWORK._replace(md5="0123ab")
    with pytest.raises(
        InputError, match=rf"begins with {MD5[:6]}, that of x with 0123ab: .* set aside as .*\.wrong and"
    ):
        cached("x", other, tmp_path, fetch)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["model.pkl.wrong"]
    assert cached("x", NETWORK, tmp_path, fetch).file.is_file()  # it is fetched again


def test_a_file_that_has_changed_is_set_aside(tmp_path: Path) -> None:
    unchecked = NETWORK._replace(md5="")
    place = cached("x", unchecked, tmp_path, fetch).file
    place.write_bytes(b"other weights")
    with pytest.raises(
        InputError, match=rf"was {SHA256} when it came \(model\.pkl\.sha256\): it has changed; it is set"
    ):
        cached("x", unchecked, tmp_path, never)
    assert not place.exists() and place.with_name("model.pkl.wrong").read_bytes() == b"other weights"


def test_a_cache_that_only_others_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(tmp_path / "x/model.pkl")

    def refuse(path: Path, text: str) -> None:
        raise WriteError(path, "Read-only file system")

    monkeypatch.setattr("upsnet.zoo.weights.write_text", refuse)
    assert cached("x", NETWORK, tmp_path, never).sums.sha256 == SHA256


def test_a_file_of_one_s_own_stays_where_it_is(tmp_path: Path) -> None:
    fetch(tmp_path / "mine")
    assert checked("x", NETWORK, tmp_path / "mine") == Sums(MD5, SHA256)
    with pytest.raises(InputError, match="mine: its MD5 begins with"):
        checked("x", NETWORK._replace(md5="0"), tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(InputError, match="none: cannot be read: No such file"):
        sums_of(tmp_path / "none")
