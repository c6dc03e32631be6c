"""Every method that has a reference fixture equals its authors' code, tensor by tensor."""

import re
from pathlib import Path

import pytest
import replay_reference
import torch

FILES = sorted((Path(__file__).parent / "reference").glob("*.npz"))
READY = [path for path in FILES if replay_reference.Fixture(path).meta["method"] in replay_reference.METHODS]


def test_the_fixtures_are_there():
    assert len(FILES) >= 37 and len(READY) >= 5


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_one_step_equals_the_authors_code_in_float64(path):
    differences = replay_reference.replay(path)
    assert differences
    worst = max(differences, key=differences.get)
    assert differences[worst] <= 1e-9, f"{worst}: {differences[worst]:.1e}"


@pytest.mark.parametrize(
    "path", [path for path in READY if path.stem not in ("lr_schedules", "dlr_logits")], ids=lambda p: p.stem
)
def test_one_step_equals_the_authors_code_in_float32(path):
    differences = replay_reference.replay(path, torch.float32)
    assert max(differences.values()) <= (1e-4 if path.stem.endswith("gen_grads") else 2e-5), differences


def test_replay_notices_a_difference(tmp_path, capsys):
    """A check that cannot fail is none: change one recorded number and the replay must object."""
    import numpy as np

    path = next(path for path in READY if path.stem.startswith("fastat"))
    with np.load(path) as file:
        arrays = dict(file)
    arrays["grad.fc.bias"][0] *= 1 + 1e-6
    np.savez(tmp_path / "changed.npz", **arrays)
    assert replay_reference.main([str(tmp_path / "changed.npz")]) == 1
    assert re.search(r"DIFFERS, largest .* at grad.fc.bias", capsys.readouterr().out)
    assert replay_reference.main([str(path)]) == 0


def test_replay_says_what_it_cannot_do(tmp_path, capsys):
    (tmp_path / "damaged.npz").write_bytes(b"PK\3\4")
    assert replay_reference.main([str(tmp_path / "damaged.npz")]) == 2
    assert "damaged.npz" in capsys.readouterr().err
