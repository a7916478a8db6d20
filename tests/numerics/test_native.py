"""Builds of native kernels: explicit, refused in one line, and never loaded when in doubt."""

from __future__ import annotations

import ctypes
import threading
import warnings
from pathlib import Path

import pytest

from blockwright.errors import KernelError
from blockwright.numerics import native
from blockwright.numerics.native import Source, build_library, distrust, find_library, library_path

TRIVIAL = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """A source that any machine can run and compile in no time."""
    file = tmp_path / "trivial.cpp"
    file.write_text(TRIVIAL, encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(native.SWITCH, raising=False)
    made = Source(str(file), ())
    refusal = native.missing(made)
    try:
        native.find_compiler()
    except KernelError as error:
        refusal = str(error)
    if refusal:
        pytest.skip(refusal)
    return made


def answers(library: ctypes.CDLL) -> bool:
    return bool(library.answer() == 42)


def test_what_was_built_is_loaded_and_nothing_else_is_left(source: Source) -> None:
    assert find_library(source) is None
    path = build_library(source, answers)
    library = find_library(source)
    assert library is not None
    assert answers(library)
    assert sorted(each.name for each in path.parent.iterdir()) == ["digest", "kernel.so"]
    assert [each.name for each in path.parents[1].iterdir()] == [path.parent.name]


def test_the_switch_turns_it_off(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    build_library(source, answers)
    monkeypatch.setenv(native.SWITCH, "0")
    assert find_library(source) is None


@pytest.mark.parametrize("damage", ["altered", "no digest", "written by others"])
def test_a_doubtful_file_is_reported_never_loaded_and_built_again(
    source: Source, damage: str
) -> None:
    path = build_library(source, answers)
    if damage == "altered":
        altered = path.read_bytes() + b"x"
        path.unlink()  # the file itself is mapped into this process
        path.write_bytes(altered)
    elif damage == "no digest":
        path.with_name("digest").unlink()
    else:
        path.chmod(0o777)
    native._load.cache_clear()
    with pytest.warns(UserWarning, match="is not used; `blockwright kernels --build`"):
        assert find_library(source) is None
    build_library(source, answers)
    assert distrust(path) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_library(source) is not None


def test_two_builds_at_once_leave_one_good_library(source: Source) -> None:
    failed: list[BaseException] = []

    def build() -> None:
        try:
            build_library(source, answers)
        except KernelError as error:
            failed.append(error)

    threads = [threading.Thread(target=build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    path = library_path(source)
    assert distrust(path) is None
    assert [each.name for each in path.parents[1].iterdir()] == [path.parent.name]


def refusal(source: Source) -> str:
    with pytest.raises(KernelError) as caught:
        build_library(source, answers)
    folder = library_path(source).parents[1]
    assert not folder.exists() or not list(folder.iterdir())
    return str(caught.value)


def test_a_machine_without_compiler_is_told_so(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no C++ compiler (no-such-compiler not found); install g++" in refusal(source)


def test_a_processor_without_the_instructions_is_told_so(source: Source) -> None:
    assert "this processor has no avx9000" in refusal(Source(source.file, ("avx9000",)))


def test_a_failed_build_shows_the_compilers_last_error(source: Source) -> None:
    source.path.write_text("int broken(\n", encoding="utf-8")
    assert "failed (" in refusal(source)
    assert "error" in refusal(source)


def test_a_library_with_wrong_products_is_not_kept(source: Source) -> None:
    source.path.write_text(TRIVIAL.replace("42", "41"), encoding="utf-8")
    assert "its products are wrong" in refusal(source)
