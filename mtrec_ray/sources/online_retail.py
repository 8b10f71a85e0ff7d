"""Online Retail (UCI, Chen 2012) and Online Retail II: invoice lines of a gift shop."""

from mtrec_ray.data.tables import Table, Tables, quoted
from mtrec_ray.sources.draft import Draft
from mtrec_ray.sources.public import Files, PublicSet

SPELLINGS = {
    "invoice": ("InvoiceNo", "Invoice"),
    "item_id": ("StockCode",),
    "title": ("Description",),
    "quantity": ("Quantity",),
    "time": ("InvoiceDate",),
    "price": ("UnitPrice", "Price"),
    "user_id": ("CustomerID", "Customer ID"),
}
# A stock code of a product: five digits, and letters for its variants. Others are postage and fees.
PRODUCT = "^[0-9]{5}[A-Za-z]*$"
DAYS = 31


def sales_of(tables: Tables, table: Table) -> str:
    """Returns the query of what known customers bought, with one spelling of the columns."""
    own = {name: next(s for s in known if s in table.types) for name, known in SPELLINGS.items()}
    plain = ", ".join(f"{quoted(spelling)} AS {name}" for name, spelling in own.items())
    tables.connection.execute(f"""
        CREATE OR REPLACE TABLE sales AS
        SELECT try_cast(user_id AS BIGINT)::VARCHAR AS user_id, upper(item_id::VARCHAR) AS item_id,
            invoice::VARCHAR AS invoice, time::TIMESTAMP AS time, trim(title) AS title, price,
            quantity
        FROM (SELECT {plain} FROM {table.sql})
        WHERE user_id IS NOT NULL AND invoice NOT LIKE 'C%' AND quantity > 0
            AND regexp_matches(upper(item_id::VARCHAR), '{PRODUCT}')""")
    return "sales"


def items_of(sales: str) -> str:
    """Returns the query of the products; prices are of the first 80 % of the lines."""
    early = f"time <= (SELECT quantile_disc(time, 0.8) FROM {sales})"
    return f"""
        SELECT item_id, mode(title) AS title, median(price) FILTER (WHERE {early}) AS price
        FROM {sales} GROUP BY item_id ORDER BY item_id"""


def events_of(sales: str) -> str:
    """Returns the query of the rows, one for each invoice and product of a customer."""
    window = f"INTERVAL {DAYS} DAY"
    return f"""
        SELECT user_id, item_id, time, 1::FLOAT AS buy,
            coalesce(lead(time) OVER again <= time + {window}, false)::FLOAT AS rebuy{DAYS},
            (pieces >= 12)::FLOAT AS bulk12
        FROM (
            SELECT user_id, item_id, invoice, min(time) AS time, sum(quantity) AS pieces
            FROM {sales} GROUP BY user_id, item_id, invoice)
        WINDOW again AS (PARTITION BY user_id, item_id ORDER BY time, invoice)
        QUALIFY time <= (SELECT max(time) FROM {sales}) - {window}"""


def drafts(tables: Tables, files: Files) -> list[Draft]:
    """Returns the scenario: purchases, those that are repeated, and those of many pieces."""
    lines = tables.open("lines", files["lines"])
    sales = sales_of(tables, lines)
    kept = tables.value(f"SELECT count(*) FROM {sales}")
    return [
        Draft(
            name="shop",
            items=items_of(sales),
            events=events_of(sales),
            item_fields={"text": "{title}", "numeric": ["price"]},
            event_fields={"user": "user_id", "item": "item_id", "time": "time"},
            tasks={
                "buy": {"kind": "binary"},
                f"rebuy{DAYS}": {"kind": "binary", "given": "buy", "delay": f"{DAYS}d"},
                "bulk12": {"kind": "binary", "given": "buy"},
            },
            why={
                "items.numeric": "median of the first 80 % of the lines: later ones are the future",
                f"tasks.rebuy{DAYS}": f"bought again within {DAYS} days",
                "tasks.bulk12": "12 pieces or more",
            },
            notes=[
                f"{lines.rows - kept:,} of {lines.rows:,} lines are left out: those without a "
                "customer, cancellations, postage and fees, and lines of no pieces",
                f"the last {DAYS} days have no label of rebuy{DAYS} yet and are left out",
            ],
            history="buy",
        )
    ]


def spelled(place: int) -> PublicSet:
    """Returns the data set in its first or its last spelling of the columns."""
    columns = [SPELLINGS[c][place] for c in ("invoice", "item_id", "title", "user_id")]
    parts = {"lines": r".*online.?retail.*\.csv"}
    return PublicSet("Online Retail", parts, drafts, {"lines": columns})


SETS = [spelled(0), spelled(-1)]
