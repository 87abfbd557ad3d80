"""A DAG of one task: `recsys nightly` has its own stages, lock, resume and report.

A stage as a task of its own would gain nothing: they share a folder, and the night goes on from what is finished.
The data of a run end where its interval ends, so a cleared run of last week is the night of then. Airflow 3.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG(
    dag_id="recsys_nightly",
    description="Train, judge and publish tonight's recommendations",
    schedule="30 2 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    tags=["recsys"],
) as dag:
    BashOperator(
        task_id="nightly",
        bash_command="recsys nightly --as-of {{ data_interval_end.isoformat() }} --max-minutes 300 --json",
        env={"RECSYS_CONFIG": "/srv/recsys/nightly.toml"},
        append_env=True,
        # a refusal is no accident: what was refused once is refused again
        retries=0,
        execution_timeout=timedelta(hours=6),
        do_xcom_push=True,
    )
