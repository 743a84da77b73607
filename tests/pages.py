"""What a page of the console says."""

import re
from typing import Any

from django.contrib.messages import get_messages


def text_of(response: Any) -> str:
    """Return the text of the page's main part, without its markup."""
    main = response.content.decode().partition("<main")[2]
    return " ".join(re.sub(r"<[^>]+>", " ", main).split())


def said(response: Any) -> list[tuple[str, str]]:
    """Return the messages that the answer shows: level and text."""
    return [(message.level_tag, str(message)) for message in get_messages(response.wsgi_request)]
