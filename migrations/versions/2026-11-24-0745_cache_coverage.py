"""What captures found of dataset versions; find the jobs that try another one again."""

import sqlalchemy as sa
from alembic import op

revision = "c2a77d4e9b10"
down_revision = "5fa746ae8769"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "cache_coverages",
        sa.Column("space", sa.String(), nullable=False),
        sa.Column("dataset_version_id", sa.BigInteger(), nullable=False),
        sa.Column("render_key", sa.String(), nullable=False),
        sa.Column("conversations", sa.BigInteger(), nullable=False),
        sa.Column("cached", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("missing_rows", sa.BigInteger(), nullable=False),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["dataset_version_id"],
            ["dataset_versions.id"],
            name=op.f("fk_cache_coverages_dataset_version_id_dataset_versions"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["space"],
            ["cache_spaces.address"],
            name=op.f("fk_cache_coverages_space_cache_spaces"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "space", "dataset_version_id", "render_key", name=op.f("pk_cache_coverages")
        ),
    )
    op.create_index(op.f("ix_jobs_parent_id"), "jobs", ["parent_id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_jobs_parent_id"), table_name="jobs")
    op.drop_table("cache_coverages")
