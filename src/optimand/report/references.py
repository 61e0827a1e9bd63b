"""The bibliography, `references.bib`: what `cite` prints, and what every `reference` of a method or study points to."""

import dataclasses
import functools
import re
from importlib import resources

__all__ = ["Reference", "reference", "references"]


@dataclasses.dataclass(frozen=True)
class Reference:
    """One entry: its key, kind, fields, and the BibTeX it was read from."""

    key: str
    kind: str
    fields: dict[str, str]
    bibtex: str

    def short(self) -> dict[str, str]:
        """One line of text, and an address."""
        fields = self.fields
        people = [_family(name) for name in re.split(r"\s+and\s+", fields.get("author", ""))]
        who = people[0] + " et al." if len(people) > 2 else " and ".join(people)
        where = fields.get("journal") or fields.get("booktitle") or fields.get("publisher", "")
        text = f"{who} ({fields.get('year', 'n.d.')}). {fields.get('title', '')}." + (f" {where}." if where else "")
        url = f"https://doi.org/{fields['doi']}" if "doi" in fields else fields.get("url", "")
        return {"text": text, "url": url}


def _family(name: str) -> str:
    return name.split(",")[0] if "," in name else name.split(" ")[-1]


@functools.cache
def references() -> dict[str, Reference]:
    """All entries, by key. **Raises:** `ValueError` if the file is not BibTeX, or has a key twice."""
    return parse(resources.files("optimand").joinpath("references.bib").read_text(encoding="utf-8"))


def reference(key: str) -> Reference:
    """The entry of this key. **Raises:** `KeyError`."""
    return references()[key]


def parse(text: str) -> dict[str, Reference]:
    """Entries of a BibTeX text of `field = {value}` lines (strings and cross-references are not used here)."""
    entries: dict[str, Reference] = {}
    for match in re.finditer(r"^@(\w+)\{([^,\s]+),", text, re.MULTILINE):
        end = _closing(text, text.index("{", match.start()))
        body = text[match.end() : end]
        if match[2] in entries:
            raise ValueError(f"references.bib has the key {match[2]} twice")
        entries[match[2]] = Reference(match[2], match[1].lower(), _fields(body), text[match.start() : end + 1])
    return entries


def _closing(text: str, start: int) -> int:
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return place
    raise ValueError(f"references.bib: the entry at {text[start : start + 40]!r} is not closed")


def _fields(body: str) -> dict[str, str]:
    fields = {}
    for match in re.finditer(r"(\w+)\s*=\s*\{", body):
        value = body[match.end() : _closing(body, match.end() - 1)]
        fields.setdefault(match[1].lower(), _plain(value))
    return fields


_ACCENTS = {'"': "\u0308", "'": "\u0301", "`": "\u0300", "^": "\u0302", "~": "\u0303", "c": "\u0327", "v": "\u030c"}


def _plain(value: str) -> str:
    """Without TeX: accents as letters, no braces."""
    import unicodedata

    def accent(match):
        return unicodedata.normalize("NFC", match[2].replace("\\i", "i") + _ACCENTS[match[1]])

    value = re.sub(r"\\([\"'`^~])\{?(\\i|\w)\}?", accent, value)
    value = re.sub(r"\\([cv])\{(\w)\}", accent, value)
    value = value.replace(r"\o", "ø").replace(r"\&", "&").replace("--", "–")
    return re.sub(r"\s+", " ", value.replace("{", "").replace("}", "")).strip()
