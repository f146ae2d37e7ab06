"""Split archives are extracted completely; malicious ones are refused and write nothing."""

import io
import os
import stat
import tarfile
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tpo_jax.data.archives import Joined, unpack
from tpo_jax.errors import InputError

FILES = {"videos/a.mp4": b"a" * 3000, "videos/deep/b.mp4": os.urandom(5000), "c.txt": b""}


def tar(members, compression="") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as out:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zipped(members) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
        for member, data in members:
            out.writestr(member, data)
    return buffer.getvalue()


def link(name, target, kind=tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def split(path, data, size):
    """`path` + aa, ab, …"""
    for i in range(0, len(data), size):
        number = i // size
        name = path.with_name(path.name + chr(97 + number // 26) + chr(97 + number % 26))
        name.write_bytes(data[i : i + size])


def contents(folder) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize("kind", ["", "gz", "bz2", "xz", "zip"])
def test_a_split_archive_is_extracted_completely_and_once(kind, tmp_path):
    data = zipped(FILES.items()) if kind == "zip" else tar(FILES.items(), kind)
    split(tmp_path / "videos.part.", data, 400)
    assert unpack(tmp_path / "videos.part.", tmp_path / "out") == 3
    assert contents(tmp_path / "out") == FILES
    stamp = (tmp_path / "out/videos/a.mp4").stat().st_mtime_ns
    (tmp_path / "out/videos/deep/b.mp4").unlink()  # as if it had been interrupted there
    unpack(tmp_path / "videos.part.", tmp_path / "out")
    assert contents(tmp_path / "out") == FILES
    assert (tmp_path / "out/videos/a.mp4").stat().st_mtime_ns == stamp
    part = tmp_path / "videos.part.ac"
    if part.exists():
        part.unlink()
        with pytest.raises(InputError, match="a part is missing between 'ab' and 'ad'"):
            unpack(tmp_path / "videos.part.", tmp_path / "new")


@pytest.mark.parametrize("kind", ["", "gz", "bz2", "xz", "zip"])
@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "zip", "mp4"])
def test_archives_one_behind_the_other_are_read_to_the_end(kind, suffix, tmp_path):
    """Whatever the suffix says."""
    made = zipped if kind == "zip" else lambda members: tar(members, kind)
    names = [f"{n}.mp4" for n in "abc"]
    files = {name: os.urandom(3000) for name in names}
    parts = [made([(name, files[name])]) for name in names]
    path = tmp_path / f"videos.{suffix}"
    path.write_bytes(b"".join(parts))
    assert unpack(path, tmp_path / "out") == 3
    assert contents(tmp_path / "out") == files
    # A second archive that is cut off is no end.
    path.write_bytes(parts[0] + parts[1][: len(parts[1]) // 3])
    if kind != "zip":  # which ends with its list of files
        with pytest.raises(InputError, match="damaged or cut off"):
            unpack(path, tmp_path / "cut")


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path):
    files = {"a.mp4": b"a" * 100, "b.zip": zipped([("inner.mp4", b"c")])}
    (tmp_path / "videos.zip").write_bytes(tar(files.items()))
    assert unpack(tmp_path / "videos.zip", tmp_path / "out") == 2
    assert contents(tmp_path / "out") == files


def test_a_program_in_front_of_a_zip_is_passed_over(tmp_path):
    (tmp_path / "videos.exe").write_bytes(b"MZ program" * 9 + zipped(FILES.items()))
    assert unpack(tmp_path / "videos.exe", tmp_path / "out") == 3
    assert contents(tmp_path / "out") == FILES


LINKED = zipfile.ZipInfo("l")
LINKED.external_attr = (stat.S_IFLNK | 0o777) << 16
DEVICE = tarfile.TarInfo("d")
DEVICE.type = tarfile.CHRTYPE


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tar([("../x", b"1")]), "'../x' leaves the folder"),
        (tar([("a/../../x", b"1")]), "leaves the folder"),
        (tar([("/tmp/poison", b"1")]), "'/tmp/poison' leaves the folder"),
        (tar([("a\\..\\x", b"1")]), "leaves the folder"),
        (tar([(link("l", "/"), b""), ("l/x", b"1")]), "'l' is a link"),
        (tar([("a", b"1"), (link("l", "a", tarfile.LNKTYPE), b"")]), "'l' is a link"),
        (tar([(DEVICE, b"")]), "'d' is not a plain file"),
        (tar([("a", b"1"), ("a", b"2")]), "'a' twice"),
        (tar([("a", bytes(10**6))], "gz"), "unpacks to more than the limit"),
        (zipped([("a", bytes(10**6))]), "unpacks to more than the limit"),
        (zipped([("../x", b"1")]), "leaves the folder"),
        (zipped([(LINKED, b"/")]), "'l' is a link"),
        (tar([]), "holds no file"),
        (b"neither", "neither a tar nor a zip archive"),
        (tar(FILES.items())[:4000], "damaged or cut off"),
        (tar(FILES.items(), "gz")[:3000], "damaged or cut off"),
    ],
)
def test_poisoned_archives_are_refused(data, message, tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in/videos.tar"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as error:
        unpack(path, tmp_path / "out")
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert {p.name for p in tmp_path.iterdir()} <= {"in", "out"}
    assert not [name for name in contents(tmp_path / "out") if name.endswith(".partial")]
    assert sum(map(len, contents(tmp_path / "out").values())) <= 3 * len(data)


def test_an_existing_link_is_not_followed(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar([("videos/x", b"1")]))
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/videos").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="through a link"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())
    with pytest.raises(InputError, match="no file, and none whose name begins so"):
        unpack(tmp_path / "none.", tmp_path / "out")


@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(1, 50), min_size=1), more=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_joined_parts_read_like_the_whole(tmp_path, data, cuts, more):
    paths, rest = [], data
    for number, cut in enumerate(cuts):
        paths.append(tmp_path / str(number))
        paths[-1].write_bytes(rest[:cut] if number < len(cuts) - 1 else rest)
        rest = rest[cut:]
    whole = io.BytesIO(data)
    with io.BufferedReader(Joined(paths), 16) as joined:
        for _ in range(5):
            offset, count = more.draw(st.integers(0, 310)), more.draw(st.integers(0, 310))
            assert joined.seek(offset) == whole.seek(offset)
            assert joined.read(count) == whole.read(count)


@given(junk=st.binary(max_size=200), where=st.integers(0, 4000))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_anywhere_is_one_clear_line(tmp_path, junk, where):
    data = tar(FILES.items(), "gz")
    (tmp_path / "a.tar").write_bytes(data[:where] + junk + data[where + len(junk) :])
    try:
        unpack(tmp_path / "a.tar", tmp_path / "out", limit=10**5)
    except InputError as error:
        assert "\n" not in str(error)
