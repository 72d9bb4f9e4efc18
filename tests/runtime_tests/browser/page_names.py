"""What a page asks its server for."""

from __future__ import annotations

import re
from collections.abc import Mapping

from qil_deploy.runtime_tests.browser.server import Resource

_NAMES = re.compile(r'(?:from "\./|new URL\("|href="|src=")([\w.-]+)"')


def asked_for(resources: Mapping[str, Resource]) -> set[str]:
    """Return the names in imports, URLs and links of a page's own files."""
    texts = [
        resource.read().decode()
        for resource in resources.values()
        if resource.content_type.startswith(("text/html", "text/javascript"))
    ]
    return {name for text in texts for name in _NAMES.findall(text)}
