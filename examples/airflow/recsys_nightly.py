"""A DAG of one task for Airflow 3: `recsys nightly` has its own stages, lock, resume and report.

One task per stage has no benefit: stages share a folder, and a run continues from its finished stages.
A run reads the interactions before the end of its data interval, so a cleared run reproduces its original data.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG(
    dag_id="recsys_nightly",
    description="Train, evaluate and publish a release",
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
        # a retry on the same data gives the same result
        retries=0,
        execution_timeout=timedelta(hours=6),
        do_xcom_push=True,
    )
