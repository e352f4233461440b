"""Structured logs on standard error: one JSON object a line for machines, colours for people.

Standard output stays free for answers. Libraries that log through `logging` (uvicorn, alembic) come out
in the same form.
"""

import logging
import sys
from typing import Literal

import structlog
from structlog.typing import Processor


def configure(*, level: str, form: Literal["json", "console"]) -> None:
    """Send every log line of this process to standard error.

    Args:
        level: least severe level written, such as `info`.
        form: `json` or `console`.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if form == "json":
        # without locals: they would print frames and bodies
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        render: list[Processor] = [
            structlog.processors.ExceptionRenderer(tracebacks),
            structlog.processors.JSONRenderer(),
        ]
    else:
        render = [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # a note on every table at every start
    logging.getLogger("alembic").setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
