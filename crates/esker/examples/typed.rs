//! Rust types as keys and values: orders by customer and day, with a version that came later.
#![expect(clippy::print_stdout, reason = "an example talks")]

use esker::{Error, PartitionOptions, TxKeyspace, TxKind};
use serde::{Deserialize, Serialize};

/// Customer and day: a tuple sorts by its first part, then by its second.
type OrderKey = (String, u32);

/// Values have no names and no types on disk. A new version is a new variant, at the end.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Order {
    V1 { cents: u64 },
    V2 { cents: u64, items: Vec<String> },
}

impl Order {
    fn cents(&self) -> u64 {
        match self {
            Self::V1 { cents } | Self::V2 { cents, .. } => *cents,
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let keyspace = TxKeyspace::open(dir.path().join("db"), TxKind::Optimistic)?;
    let partition = |name| keyspace.partition(name, PartitionOptions::default());
    let orders = partition("orders")?.typed::<OrderKey, Order>();
    let totals = partition("totals")?.typed::<String, u64>();

    for (customer, day, order) in [
        ("ada", 3, Order::V1 { cents: 500 }),
        ("ada", 20, Order::V2 { cents: 1200, items: vec!["cards".into(), "gears".into()] }),
        ("grace", 7, Order::V2 { cents: 99, items: vec!["a moth".into()] }),
    ] {
        // The order and the sum change together, also if the power fails.
        keyspace.transact(|tx| {
            orders.insert_in(tx, (customer, day), &order)?;
            totals.update_in(tx, customer, |sum| Some(sum.unwrap_or(0) + order.cents()))
        })?;
    }

    // All of one customer, the newest first.
    for entry in orders.prefix(("ada",))?.rev() {
        let ((customer, day), order) = entry?;
        println!("{customer} on day {day}: {order:?}");
    }
    // Between two days; the parts of a key may be borrowed.
    let early = orders.range(("ada", 0)..("ada", 10))?.collect::<esker::Result<Vec<_>>>()?;
    assert_eq!(early, [(("ada".to_owned(), 3), Order::V1 { cents: 500 })]);
    assert_eq!(totals.get("ada")?, Some(1700));

    // Everything at one moment, typed as well.
    let snapshot = keyspace.snapshot();
    totals.remove("grace")?;
    assert_eq!(totals.at(&snapshot).get("grace")?, Some(99));

    // What is of another type is an error that says where, and harms nobody.
    let mistaken = totals.partition().typed::<String, (u64, String)>();
    match mistaken.get("ada") {
        Err(error @ Error::Undecodable(_)) => println!("{error}"),
        other => panic!("{other:?}"),
    }
    Ok(())
}
