"""What can go wrong for a caller: a status, a code, and a message that says what to do."""

from __future__ import annotations


class ServiceError(Exception):
    """A request that gets no text; becomes an answer in OpenAI's form."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        """Remember the answer.

        Args:
            message: for the caller; names no file of this machine.
            status: of HTTP.
            code: for programs, such as `audio_too_long`.
            param: of the request that is at fault.
            retry_after_s: when to come back, where that helps.
        """
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def kind(self) -> str:
        """OpenAI's `type`."""
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def as_dict(self) -> dict[str, object]:
        """Return OpenAI's form: `{"error": {message, type, param, code}}`."""
        found = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": found}


def queue_full(retry_after_s: int = 1) -> ServiceError:
    """Return what somebody is told who comes while all places are taken."""
    return ServiceError(
        f"the service is busy; try again in {retry_after_s} s",
        status=429,
        code="queue_full",
        retry_after_s=retry_after_s,
    )
