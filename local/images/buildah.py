"""buildah: builds images from Dockerfiles as root, without a daemon."""

import contextlib
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.settings import SetupError


class BuildError(Exception):
    """buildah failed; the message holds the end of what it said."""


@dataclass(frozen=True)
class ImageConfig:
    """What an image says of how it is to be run."""

    entrypoint: Sequence[str]
    command: Sequence[str]
    environment: Mapping[str, str]
    user: str
    working_directory: str
    labels: Mapping[str, str]


class Buildah:
    """buildah with a store of images of its own.

    Args:
        folder: holds the store; kept, so that a second build finds the layers of the first.

    Raises:
        SetupError: buildah is not installed.
    """

    def __init__(self, folder: Path) -> None:
        if shutil.which("buildah") is None:
            raise SetupError("images are built with buildah: install buildah and debootstrap")
        folder.mkdir(parents=True, exist_ok=True)
        policy = folder / "policy.json"
        policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        self._policy = f"--signature-policy={policy}"
        self._command = ("buildah", f"--root={folder / 'store'}", f"--runroot={folder / 'run'}")

    def has(self, image: str) -> bool:
        """Return whether the store holds `image`."""
        return bool(self.run("images", "--quiet", "--filter", f"reference={image}").strip())

    def pull(self, image: str) -> bool:
        """Fetch `image` from its registry; return whether that worked."""
        try:
            self.run("pull", "--quiet", self._policy, image)
        except BuildError:
            return False
        return True

    def build(
        self,
        dockerfile: Path,
        context: Path,
        tag: str,
        *,
        arguments: Mapping[str, str],
        volumes: Sequence[str],
        log: Path,
    ) -> None:
        """Build one image.

        Args:
            dockerfile: what to build; its first stage, `build`, is the one that installs.
            context: folder that it copies from.
            tag: name of the image.
            arguments: build arguments.
            volumes: what is there while the first stage runs, as PATH:PATH:ro.
            log: takes the output.

        Raises:
            BuildError: it can't be built.
        """
        command = [
            *(*self._command, "build", "--isolation=chroot", "--layers", "--format=oci"),
            # What lies in the store, such as a base made here, is never asked for elsewhere.
            *("--pull-never", self._policy, f"--file={dockerfile}"),
            *(f"--build-arg={name}={value}" for name, value in arguments.items()),
        ]
        # The first stage alone, whose layers the second command then finds: a volume leaves
        # an empty folder where it was, and none shall be in the image.
        mounts = [f"--volume={volume}" for volume in volumes]
        with log.open("wb") as output:
            for options in (
                ["--target=build", *mounts],
                [f"--tag={tag}", *_marks(dockerfile, arguments)],
            ):
                done = subprocess.run(
                    [*command, *options, str(context)],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    check=False,
                )
                if done.returncode:
                    break
        if done.returncode:
            lines = [
                line
                for line in log.read_text(errors="replace").splitlines()
                if not line.startswith("WARNING")
            ]
            raise BuildError(
                "\n".join([f"{tag} can't be built:", *lines[-15:], f"(all of it: {log})"])
            )

    def import_folder(self, folder: Path, tag: str) -> None:
        """Make an image of the files in `folder`."""
        container = self.run("from", "scratch").strip()
        try:
            self.run("add", "--quiet", container, str(folder), "/")
            self.run(
                "config",
                "--env=PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin",
                container,
            )
            self.run("commit", "--quiet", self._policy, container, tag)
        finally:
            self.run("rm", container)

    @contextlib.contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """Give the files of `image` as a folder, until the end of the block."""
        container = self.run("from", "--pull-never", self._policy, image).strip()
        try:
            yield Path(self.run("mount", container).strip())
        finally:
            self.run("rm", container)

    def config(self, image: str) -> ImageConfig:
        """Return what `image` says of how it is to be run."""
        config = self._inspect(image)["OCIv1"]["config"]
        return ImageConfig(
            entrypoint=config.get("Entrypoint", []),
            command=config.get("Cmd", []),
            environment=dict(item.split("=", 1) for item in config.get("Env", [])),
            user=config.get("User", ""),
            working_directory=config.get("WorkingDir", "/"),
            labels=config.get("Labels", {}),
        )

    def layers(self, image: str) -> list[str]:
        """Return the digests of an image's layers, the base's first."""
        layers: list[str] = self._inspect(image)["OCIv1"]["rootfs"]["diff_ids"]
        return layers

    def compressed_bytes(self, image: str) -> int:
        """Return the size of an image's layers as a registry holds them, with gzip."""
        with tempfile.TemporaryDirectory() as folder:
            self.run("push", "--quiet", self._policy, image, f"oci:{folder}:image")
            blobs = Path(folder) / "blobs" / "sha256"
            [entry] = json.loads((Path(folder) / "index.json").read_text())["manifests"]
            manifest = json.loads((blobs / entry["digest"].removeprefix("sha256:")).read_text())
            return sum(layer["size"] for layer in manifest["layers"])

    def run(self, *arguments: str) -> str:
        """Return what buildah prints.

        Raises:
            BuildError: it failed.
        """
        done = subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BuildError(f"buildah {arguments[0]}: {done.stderr.strip()}")
        return done.stdout

    def _inspect(self, image: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.run("inspect", "--type=image", image))
        return answer


def _marks(dockerfile: Path, arguments: Mapping[str, str]) -> list[str]:
    """Return the options that set again each variable and label that is a build argument.

    buildah's cache compares the text of such lines and not what it stands for: an image
    would keep the values of an earlier build.
    """
    lines = dockerfile.read_text()
    options = []
    for name, value in arguments.items():
        if f" {name}=${{{name}}}" in lines:
            options.append(f"--env={name}={value}")
        options += [
            f"--label={label}={value}" for label in re.findall(rf'(\S+)="\$\{{{name}\}}"', lines)
        ]
    return options
