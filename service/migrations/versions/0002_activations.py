"""Which bundle was put in service when."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make `activations`."""
    op.create_table(
        "activations",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("bundle", sa.String, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("configured", sa.String, nullable=True),
        sa.Column("activated_at", sa.DateTime, nullable=False),
    )


def downgrade() -> None:
    """Drop `activations`."""
    op.drop_table("activations")
