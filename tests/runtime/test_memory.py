"""What a machine has left, as its system and its control groups say."""

import pytest
from rediprune.runtime import memory


@pytest.fixture
def machine(tmp_path, monkeypatch):
    for name, place in (("_MEMINFO", "meminfo"), ("_MEMBERSHIP", "cgroup"), ("_GROUPS", "groups")):
        monkeypatch.setattr(memory, name, tmp_path / place)
    return tmp_path


def group(place, limit, used, cached, version):
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    place.mkdir(parents=True, exist_ok=True)
    (place / names[0]).write_text(f"{limit}\n")
    (place / names[1]).write_text(f"{used}\n")
    (place / "memory.stat").write_text(f"anon 1\n{names[2]} {cached}\nslab 2\n")


def test_nobody_says(machine):
    assert memory.available_memory() is None


def test_the_system_says(machine):
    (machine / "meminfo").write_text("MemTotal:  99 kB\nMemAvailable:   7 kB\n")
    assert memory.available_memory() == 7 * 1024


@pytest.mark.parametrize(("version", "line", "root"), [(2, "0::/a/b", "."), (1, "4:cpu,memory:/a/b", "memory")])
def test_the_tightest_group_says_and_cached_files_are_free(machine, version, line, root):
    (machine / "meminfo").write_text("MemAvailable:  1000 kB\n")
    (machine / "cgroup").write_text(f"7:pids:/elsewhere\n{line}\n")
    place = machine / "groups" / root
    group(place / "a" / "b", 1000, 900, 300, version)
    assert memory.available_memory() == 400
    group(place / "a", 1000, 950, 200, version)
    assert memory.available_memory() == 250
    group(place / "elsewhere", 10, 10, 0, version)
    assert memory.available_memory() == 250
    group(place / "a" / "b", "max", 900, 300, version)
    assert memory.available_memory() == 250
