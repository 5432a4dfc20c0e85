import pytest

from emoji_world import icons, world
from hra_diffusion.errors import HRAError

PACKAGE = next(iter(icons.PACKAGES))


def test_a_package_with_a_wrong_hash_is_refused_with_its_name(tmp_path):
    name, _, version = PACKAGE.rpartition("@")
    tarball = tmp_path / f"{name.strip('@').replace('/', '-')}-{version}.tgz"
    tarball.write_bytes(b"another package")
    with pytest.raises(HRAError, match=r"fluent-emoji-3d.*sha512.*delete it"):
        icons.fetch(PACKAGE, tmp_path)


def test_every_name_and_icon_code_is_unique():
    groups = [world.KINDS, world.HELD_OUT_KINDS, world.ACCESSORIES]
    names = [name for group in groups for name in group]
    codes = [code for group in groups for code in group.values()]
    assert len(set(names)) == len(names)
    assert len(set(codes)) == len(codes)
