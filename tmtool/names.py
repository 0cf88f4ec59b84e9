"""Names of rasters without secrets: the user, password and query of a URL are removed.

A raster is opened by its whole name, so names are kept whole inside, and secrets are removed where text leaves the process:
error messages, the log, JSON, tags and the standard streams.
"""

import logging
import re
import traceback
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

_STOP = r"\s\"<>\\"  # none of these is part of a URL as it is
_ENDS = rf"(?=[.,:;!)\]}}']*(?:[{_STOP}]|\Z)|}}/)"  # before what a sentence adds, or before what lies in an archive
_USER = re.compile(
    rf"(?<=://)(?:[^{_STOP}/?#]*@"
    rf"|[^{_STOP}/:@]*:(?!\d*(?:[{_STOP}/?#]|\Z))[^{_STOP}]*@)"  # a password with / or ?, which should be encoded
)
_QUERY = re.compile(
    rf"(://[^{_STOP}?#]*?)[?#][^{_STOP}]*?{_ENDS}"
    rf"|(/vsi(?:s3|gs|az|adls|oss|swift|hdfs|webhdfs|curl)(?:_streaming)?/[^{_STOP}?]*?)\?[^{_STOP}]*?{_ENDS}"
)
_OPTIONS = re.compile(rf"(/vsi[a-z0-9_]+)\?([^{_STOP}]*?){_ENDS}")


def shown(text: str) -> str:
    """Return a name, or a text with names in it, without the user, password and query of each URL.

    Of GDAL's `/vsicurl?url=...&...` the URL is kept, decoded.
    """
    if "://" not in text and "/vsi" not in text:
        return text
    text = _OPTIONS.sub(lambda found: _url(found[1], found[2]), text)
    return _QUERY.sub(lambda found: found[1] or found[2], _USER.sub("", text))


def _url(handler: str, options: str) -> str:
    """Return the URL among a handler's options in the handler's other form, `/vsicurl/URL`."""
    urls = [unquote(value) for name, _, value in (o.partition("=") for o in options.split("&")) if name == "url"]
    return f"{handler}/{in_one_word(urls[0])}" if urls else handler


def in_one_word(path: str) -> str:
    """Return the name with blanks of a URL encoded, as GDAL does when it asks for it: text shows where the name ends.

    What lies in an archive, after `}/`, keeps its name.
    """
    if "://" not in path and "/vsicurl?" not in path:
        return path
    url, brace, inside = path.partition("}/")
    return re.sub(r"\s", lambda blank: quote(blank[0]), url) + brace + inside


def base(path: str) -> str:
    """Return the file's name alone, without secrets: `x y.tif` of `https://user:password@host/c/x%20y.tif?sig=...`."""
    name = shown(path)
    name = unquote(name) if "://" in name else name
    return name.rstrip("/").rpartition("/")[2] or name


def cleaned(value: Any) -> Any:
    """Return a JSON value with secrets removed from every text in it."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, Mapping):
        return {cleaned(key): cleaned(each) for key, each in value.items()}
    return [cleaned(each) for each in value] if isinstance(value, (list, tuple)) else value


def clean_record(record: logging.LogRecord) -> bool:
    """Remove secrets from a log record, traceback included; a filter that lets every record pass."""
    record.msg, record.args = shown(record.getMessage()), None
    if record.exc_info and record.exc_info[0]:
        record.exc_text = shown("".join(traceback.format_exception(*record.exc_info)).rstrip())
    return True
