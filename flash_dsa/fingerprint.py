"""Fingerprints of what was compiled: whether two builds run the same code, from their objects, without a GPU.

setup.py loads this file by its path, before there is a library, so it imports nothing but the standard library. The
form of a fingerprint is that of ci/codegen.py; what enters it, and why, is in docs/decisions/0003.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PATH = Path(__file__).with_name("_fingerprint.json")  # written by the build beside the library
KEEP = ".keep"  # suffix of the folder beside an object of nvcc that holds its cubins
UNKNOWN: Mapping[str, Any] = {"host": None, "kernels": {}}  # equal to nothing, not even to itself

SHT_PROGBITS, SHT_RELA, SHT_NOBITS, SHT_REL, SHT_INIT_ARRAY = 1, 4, 8, 9, 14
SHF_ALLOC, SHF_EXECINSTR = 2, 4
STB_LOCAL = 0
STT_FUNC, STT_SECTION = 2, 3
EM_CUDA = 190
STO_CUDA_ENTRY = 0x10  # in a symbol's st_other: a kernel

# Attributes in .nv.info, named by cuobjdump --dump-elf.
FRAME_SIZE, REGCOUNT = 0x11, 0x2F
LAUNCH_ATTRIBUTES = {0x05: "MAX_THREADS", 0x10: "REQNTID", 0x3D: "CTA_PER_CLUSTER", 0x3E: "EXPLICIT_CLUSTER"}

# Sections of host objects without code or data of ours: device code, which the cubins show, and unwinding tables.
NO_HOST_CODE = (b".nv", b"__nv", b".eh_frame", b".gcc_except_table", b".note")


class Compiled(NamedTuple):
    """An object of the build.

    Args:
        path: of the object. label: its source and variant, such as `cpu_simd.cpp-avx2` or `sparse_fwd/sm80.cu`.
        target: whose kernels it holds, such as `cpu`; None for host code.
    """

    path: Path
    label: str
    target: str | None

    @property
    def op(self) -> str | None:
        """The op whose folder the source is in, None for what ops share."""
        folder, _, rest = self.label.partition("/")
        return folder if rest else None


class Section(NamedTuple):
    name: bytes
    type: int
    flags: int
    size: int
    data: bytes
    link: int
    info: int


class Symbol(NamedTuple):
    name: bytes
    binding: int
    type: int
    other: int
    section: int
    value: int


class Relocation(NamedTuple):
    offset: int
    type: int
    symbol: Symbol
    addend: int


class Elf:
    """Sections, symbols and relocations of a little-endian ELF64 file: host object or cubin.

    Args:
        content: of the file.

    Raises:
        ValueError: it is no such file.
    """

    def __init__(self, content: bytes) -> None:
        if content[:6] != b"\x7fELF\x02\x01":
            raise ValueError("expected a little-endian ELF64 file")
        try:
            self.abi_version = content[8]
            self.machine, self.flags = struct.unpack_from("<18xH28xI", content)
            self._read_sections(content)
            self._read_symbols()
        except (struct.error, IndexError) as error:
            raise ValueError(f"the ELF file is cut short or inconsistent: {error}") from error

    def _read_sections(self, content: bytes) -> None:
        (table,) = struct.unpack_from("<40xQ", content)
        entry_size, count, names_index = struct.unpack_from("<58xHHH", content)
        headers = [struct.unpack_from("<IIQQQQII", content, table + i * entry_size) for i in range(count)]
        names_at = headers[names_index][4]
        self.sections = []
        for name, kind, flags, _, offset, size, link, info in headers:
            data = b"" if kind == SHT_NOBITS else content[offset : offset + size]
            self.sections.append(Section(_text_at(content, names_at + name), kind, flags, size, data, link, info))

    def _read_symbols(self) -> None:
        self.symbols = []
        for table in (section for section in self.sections if section.name == b".symtab"):
            names = self.sections[table.link].data
            for name, info, other, section, value, _ in struct.iter_unpack("<IBBHQQ", table.data):
                self.symbols.append(Symbol(_text_at(names, name), info >> 4, info & 0xF, other, section, value))

    def relocations(self, index: int) -> Iterator[Relocation]:
        """Those that apply to section number `index`."""
        for section in self.sections:
            if section.info != index or section.type not in (SHT_RELA, SHT_REL):
                continue
            entries = struct.iter_unpack("<QQq" if section.type == SHT_RELA else "<QQ", section.data)
            for offset, info, *addend in entries:
                yield Relocation(offset, info & 0xFFFFFFFF, self.symbols[info >> 32], addend[0] if addend else 0)

    def section_of(self, symbol: Symbol) -> Section | None:
        """Where it is defined, None for what is undefined, absolute or common."""
        return self.sections[symbol.section] if 0 < symbol.section < len(self.sections) else None


def _text_at(table: bytes, offset: int) -> bytes:
    return table[offset : table.index(b"\0", offset)]


def plain(text: bytes) -> bytes:
    """Blank what nvcc puts into names with internal linkage: hashes of the source's path around its file name.

    Args:
        text: a name, or data that may hold names, such as `_GLOBAL__N__62e7cf74_7_sm80_cu_c2ad08a6`.

    Returns:
        As many bytes, with zeros for the digits of hashes.
    """
    found = bytearray(text)
    for match in re.finditer(rb"_([0-9a-f]{8})_(\d{1,3})_", text):
        found[match.start(1) : match.end(1)] = b"0" * 8
        after = match.end() + int(match[2])
        if re.fullmatch(rb"_[0-9a-f]{8}", text[after : after + 9]):
            found[after + 1 : after + 9] = b"0" * 8
    return bytes(found)


class _Digest:
    """SHA-256 over values with their lengths, so that no two sequences of values run into the same bytes."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def add(self, *values: bytes | str | int) -> None:
        for value in values:
            part = value if isinstance(value, bytes) else str(value).encode()
            self._sha.update(struct.pack("<Q", len(part)) + part)

    def hex(self) -> str:
        return self._sha.hexdigest()[:32]


def machine_code(elf: Elf) -> str:
    """Hash the code and data of a host object: what it does, not where it was built or how it is described.

    Args:
        elf: the object.

    Returns:
        Hexadecimal digits.
    """
    digest = _Digest()
    code = [section.flags & SHF_ALLOC and not section.name.startswith(NO_HOST_CODE) for section in elf.sections]
    for index, section in enumerate(elf.sections):
        if not code[index]:
            continue
        # Names are data where kernels are registered. Instructions are never text to be blanked.
        data = section.data if section.flags & SHF_EXECINSTR else plain(section.data)
        digest.add(plain(section.name), section.size, data)
        for relocation in elf.relocations(index):
            symbol, home = relocation.symbol, elf.section_of(relocation.symbol)
            name = home.name if symbol.type == STT_SECTION and home else symbol.name
            digest.add(relocation.offset, relocation.type, plain(name), relocation.addend)
    # What others call by name: two functions that swap their names are another program.
    exported = [s for s in elf.symbols if s.binding != STB_LOCAL and elf.section_of(s) and code[s.section]]
    for name, at, value in sorted((plain(s.name), s.section, s.value) for s in exported):
        digest.add(name, plain(elf.sections[at].name), value)
    return digest.hex()


def kernels_of(elf: Elf) -> dict[str, dict[str, Any]]:
    """Fingerprint the kernels of a cubin.

    Args:
        elf: the cubin.

    Returns:
        By symbol name: `sass`, `registers`, `spill_bytes` (the stack frame: spills, and arrays that registers cannot
        hold) and `shared_bytes` (static, with what the system reserves).

    Raises:
        ValueError: it is no cubin.
    """
    if elf.machine != EM_CUDA:
        raise ValueError(f"expected a cubin, got an ELF file for machine {elf.machine}")
    entries = [s for s in elf.symbols if s.type == STT_FUNC and s.other & STO_CUDA_ENTRY and elf.section_of(s)]
    owned = {section.name: symbol.name for symbol in entries for section in elf.sections if _owns(symbol, section)}
    shared = _Digest()
    for index, section in enumerate(elf.sections):
        if section.name not in owned and _is_content(section):
            _add_section(shared, elf, index)
    figures = {FRAME_SIZE: _figure(elf, FRAME_SIZE), REGCOUNT: _figure(elf, REGCOUNT)}
    found = {}
    for symbol in entries:
        digest, shared_bytes = _Digest(), 0
        digest.add(shared.hex())
        own = [index for index, section in enumerate(elf.sections) if owned.get(section.name) == symbol.name]
        # By name: the order of sections is not the kernel's.
        for index in sorted(own, key=lambda i: elf.sections[i].name):
            section = elf.sections[index]
            if _is_content(section):
                _add_section(digest, elf, index)
            if section.name.startswith(b".nv.shared."):
                shared_bytes += section.size
            if section.name.startswith(b".nv.info."):
                for attribute, value in _attributes(section.data):
                    if attribute in LAUNCH_ATTRIBUTES:
                        digest.add(LAUNCH_ATTRIBUTES[attribute], value)
        found[symbol.name.decode()] = {
            "sass": digest.hex(),
            "registers": figures[REGCOUNT].get(symbol.name),
            "spill_bytes": figures[FRAME_SIZE].get(symbol.name),
            "shared_bytes": shared_bytes,
        }
    return found


def _owns(kernel: Symbol, section: Section) -> bool:
    """Whether a section is one of a kernel's: `.text.<kernel>`, `.nv.constant2.<kernel>`."""
    prefix = section.name.removesuffix(b"." + kernel.name)
    return prefix != section.name and re.fullmatch(rb"\.text|\.nv\.(info|shared|constant\d+)", prefix) is not None


def _is_content(section: Section) -> bool:
    """Instructions, literals and initial values; not what only has a size, and nothing about the source."""
    return bool(section.flags & SHF_ALLOC) and section.type == SHT_PROGBITS


def _add_section(digest: _Digest, elf: Elf, index: int) -> None:
    section = elf.sections[index]
    digest.add(_kind(section), section.data)
    for relocation in elf.relocations(index):
        home = elf.section_of(relocation.symbol)
        # By place rather than by name: names are hashed with paths, and another kernel's name is not this one's code.
        what = _kind(home) if home else plain(relocation.symbol.name)
        where = relocation.symbol.value if home else 0
        digest.add(relocation.offset, relocation.type, what, where, relocation.addend)


def _kind(section: Section) -> bytes:
    """`.text.<kernel>` to `.text`, `.nv.constant2.<kernel>` to `.nv.constant2`, `.nv.global.init` as it is."""
    match = re.match(rb"\.text|\.nv\.(shared|constant\d+)", section.name)
    return match[0] if match else section.name


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(attribute, value) of a .nv.info section: a format, an attribute, then two bytes of value or of its length."""
    offset = 0
    while offset + 4 <= len(data):
        form, attribute, length = struct.unpack_from("<BBH", data, offset)
        start = offset + (4 if form == 4 else 2)
        end = start + (length if form == 4 else 2)
        yield attribute, data[start:end]
        offset = end


def _figure(elf: Elf, wanted: int) -> dict[bytes, int]:
    """Value of an attribute by the function it is about."""
    found = {}
    for section in elf.sections:
        if section.name == b".nv.info":
            for attribute, value in _attributes(section.data):
                if attribute == wanted:
                    symbol, number = struct.unpack("<II", value)
                    found[elf.symbols[symbol].name] = number
    return found


def architecture(elf: Elf) -> str:
    """Name what a cubin is for, such as `sm_90`: toolkits since 13.0 keep the number elsewhere in the flags."""
    return f"sm_{(elf.flags >> 8 if elf.abi_version >= 8 else elf.flags) & 0xFF}"


def readable(names: Sequence[str]) -> dict[str, str]:
    """Demangle kernels' names, and leave out namespaces and parameters where the rest tells them apart.

    Args:
        names: as the linker knows them.

    Returns:
        Names to read by names given.
    """
    full = {name: _demangled(plain(name.encode()).decode()) for name in names}
    short = {name: _shortened(text) for name, text in full.items()}
    counts = list(short.values())
    return {name: short[name] if counts.count(short[name]) == 1 else full[name] for name in names}


def _demangled(name: str) -> str:
    """By the C++ runtime that torch has loaded anyway; the name itself where there is none, or for a C name."""
    try:
        runtime = ctypes.CDLL("libstdc++.so.6")
    except OSError:
        return name
    demangle, release = runtime["__cxa_demangle"], ctypes.CDLL(None)["free"]
    demangle.restype, release.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    status = ctypes.c_int()
    address = demangle(name.encode(), None, None, ctypes.byref(status))
    if status.value != 0 or not address:
        return name
    text = ctypes.string_at(address).decode()
    release(address)
    return text


def _shortened(text: str) -> str:
    """`void flash_dsa::sm80::k<flash_dsa::Tile<2> >(flash_dsa::Params)` to `k<Tile<2>>`."""
    text = re.sub(r"\(anonymous namespace\)::|\b[A-Za-z_]\w*::", "", text.removeprefix("void "))
    text = text.replace(" >", ">")
    depth = 0
    for index, letter in enumerate(text):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return text[:index]
    return text


def make(objects: Sequence[Compiled], kernels: Path, package: Path) -> dict[str, Any]:
    """Fingerprint a build.

    Args:
        objects: all that the library was linked from; beside those of nvcc lie the cubins it kept.
        kernels, package: folders of the sources, `kernels` and `flash_dsa`.

    Returns:
        `{"host": hash, "kernels": {"target/name": {...}}}` as ci/codegen.py reads it.

    Raises:
        ValueError: a file is not what compilers are known to write.
        OSError: a file is missing.
    """
    host, found = _Digest(), {}
    for one in sorted(objects, key=lambda one: one.label):
        try:
            code = machine_code(Elf(one.path.read_bytes()))
            # The host's side of an nvcc object is launch configuration.
            if one.target != "cpu":
                host.add(one.label, code)
            if one.target == "cpu":
                found[f"cpu/{one.label}"] = _entry(one.op, {"sass": code})
            elif one.target is not None:
                found.update(_device_code(one, one.target))
        except ValueError as error:
            raise ValueError(f"{one.path.name}: {error}") from error
    for path in _host_sources(kernels, package):
        host.add(path.relative_to(path.parents[1]).as_posix(), path.read_bytes())
    return {"host": host.hex(), "kernels": dict(sorted(found.items()))}


def _device_code(one: Compiled, target: str) -> dict[str, dict[str, Any]]:
    cubins = sorted(Path(f"{one.path}{KEEP}").glob("*.cubin"))
    if not cubins:
        raise ValueError(f"no cubin is in {one.path.name}{KEEP}: nvcc or what wraps it kept none")
    found = {}
    for path in cubins:
        elf = Elf(path.read_bytes())
        # sm80 is compiled for several architectures; sm90a and sm100f name their only one.
        suffix = "" if target[-1].isalpha() else f" {architecture(elf)}"
        kernels = kernels_of(elf)
        names = readable(sorted(kernels))
        for symbol, kernel in kernels.items():
            found[f"{target}/{names[symbol]}{suffix}"] = _entry(one.op, kernel)
    return found


def _entry(op: str | None, known: Mapping[str, Any]) -> dict[str, Any]:
    return {"op": op, "sass": None, "registers": None, "spill_bytes": None, "shared_bytes": None, **known}


def _host_sources(kernels: Path, package: Path) -> list[Path]:
    """Sources of the host's part: not the cpu target's, which is hashed as machine code, nor what the build writes."""
    native = [path for suffix in ("h", "cpp") for path in kernels.rglob(f"*.{suffix}")]
    python = [path for path in package.glob("*.py") if path.name != "_build_info.py"]
    return [*sorted(path for path in native if not path.name.startswith("cpu")), *sorted(python)]


def text_of(fingerprint: Mapping[str, Any]) -> str:
    """What is written to `_fingerprint.json`."""
    return json.dumps(fingerprint, indent=1, sort_keys=True) + "\n"


def describe() -> str:
    """Say in one line what fingerprint lies beside the library."""
    try:
        fingerprint = json.loads(PATH.read_text())
        kernels = len(fingerprint["kernels"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"none: {error}"
    return f"{kernels} kernels, {PATH}" if fingerprint.get("host") else "none: the build said why"
