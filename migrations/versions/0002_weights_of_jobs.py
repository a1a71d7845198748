"""A job may name a second dataset: the weights that it starts from.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("weights_dataset", sa.String(length=128), nullable=True))
    op.create_index("ix_jobs_weights_dataset", "jobs", ["weights_dataset"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_jobs_weights_dataset", table_name="jobs")
    op.drop_column("jobs", "weights_dataset")
