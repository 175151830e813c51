"""What a run notes of where it was made."""

import subprocess

import torch

from core.utils.environment import describe_environment, find_commit


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", "-C", str(folder), *who, *words], capture_output=True, text=True, check=True).stdout


def test_the_commit_is_that_of_the_folder_and_says_where_files_differ(tmp_path):
    assert find_commit(tmp_path) == ""
    git(tmp_path, "init", "-q")
    assert find_commit(tmp_path) == ""  # no commit yet
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "a")
    commit = git(tmp_path, "rev-parse", "HEAD").strip()
    (tmp_path / "results").mkdir()
    (tmp_path / "results/log.txt").write_text("not of the project")
    assert find_commit(tmp_path) == commit
    (tmp_path / "a.py").write_text("2")
    assert find_commit(tmp_path) == f"{commit} with changes"
    assert find_commit(tmp_path / "results") == ""  # not that of the repository around it


def test_versions_and_device_are_noted():
    found = describe_environment("python x.py", "cpu (1 threads)", "float32")
    assert [found[name] for name in ("command", "device", "precision")] == ["python x.py", "cpu (1 threads)", "float32"]
    assert found["torch"] == torch.__version__
    assert all(isinstance(value, str | int) for value in found.values())
