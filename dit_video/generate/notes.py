"""What a user should know of a request: said in the log, and kept for the clip's metadata."""

from dit_video.core.errors import BadInput
from dit_video.core.log import log


class Notes(list):
    """Collects it; `strict` turns warnings into errors."""

    def __init__(self, strict: bool):
        super().__init__()
        self.strict = strict

    def say(self, text: str) -> None:
        log.info(text)
        self.append(text)

    def warn(self, text: str) -> None:
        if self.strict:
            raise BadInput(text)
        log.warning(text)
        self.append(text)
