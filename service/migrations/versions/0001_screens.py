"""The first table: one row for each answered screen."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make `screens`."""
    op.create_table(
        "screens",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("screen_id", sa.String(64), nullable=False, unique=True),
        sa.Column("digest", sa.String(32), nullable=False),
        sa.Column("verdict", sa.String(8), nullable=False),
        sa.Column("recorded_at", sa.DateTime, nullable=False),
        sa.Column("answer", sa.String, nullable=False),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    """Drop `screens`."""
    op.drop_table("screens")
