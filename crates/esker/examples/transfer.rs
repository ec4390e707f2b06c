//! Money moves between accounts in transactions of several threads, and a checkpoint taken in the
//! middle holds all of it.
#![expect(clippy::print_stdout, reason = "an example talks")]

use std::sync::atomic::{AtomicU64, Ordering};

use esker::{Durability, PartitionOptions, Result, Slice, TxKeyspace, TxKind, TxPartition};

const ACCOUNTS: u64 = 20;
const EACH: u64 = 1000;

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let bank = TxKeyspace::open(dir.path().join("bank"), TxKind::Optimistic)?;
    let accounts = bank.partition("accounts", PartitionOptions::default())?;
    for account in 0..ACCOUNTS {
        accounts.insert(account.to_be_bytes(), EACH.to_be_bytes())?;
    }

    let attempts = AtomicU64::new(0);
    let (bank, accounts, attempts) = (&bank, &accounts, &attempts);
    let report = std::thread::scope(|scope| {
        let tellers: Vec<_> = (0..4)
            .map(|teller| {
                scope.spawn(move || {
                    (0..500).try_for_each(|number| {
                        let from = (teller * 7 + number) % ACCOUNTS;
                        let to = (teller * 3 + number * 5 + 1) % ACCOUNTS;
                        transfer(bank, accounts, from, to, 1 + number % 50, attempts)
                    })
                })
            })
            .collect();
        let report = bank.backup_to(dir.path().join("backup"));
        for teller in tellers {
            teller.join().expect("a teller panicked")?;
        }
        report
    })?;

    let copy = TxKeyspace::open(dir.path().join("backup"), TxKind::Optimistic)?;
    let copied = copy.partition("accounts", PartitionOptions::default())?;
    println!("2000 transfers took {} attempts", attempts.load(Ordering::Relaxed));
    println!("the bank holds {}", total(accounts)?);
    println!("its checkpoint at commit {} holds {}", report.seqno, total(&copied)?);
    assert_eq!((total(accounts)?, total(&copied)?), (ACCOUNTS * EACH, ACCOUNTS * EACH));
    Ok(())
}

/// Moves money, if there is enough. Run again by `transact` when somebody else was faster.
fn transfer(
    bank: &TxKeyspace,
    accounts: &TxPartition,
    from: u64,
    to: u64,
    amount: u64,
    attempts: &AtomicU64,
) -> Result<()> {
    bank.transact(|tx| {
        attempts.fetch_add(1, Ordering::Relaxed);
        tx.durability(Durability::Buffer);
        let balance = amount_of(tx.get(accounts, from.to_be_bytes())?.as_ref());
        if from == to || balance < amount {
            return Ok(());
        }
        tx.insert(accounts, from.to_be_bytes(), (balance - amount).to_be_bytes())?;
        tx.fetch_update(accounts, to.to_be_bytes(), |value| {
            Some((amount_of(value) + amount).to_be_bytes().into())
        })?;
        Ok(())
    })
}

fn amount_of(value: Option<&Slice>) -> u64 {
    value.and_then(|bytes| bytes[..].try_into().ok()).map_or(0, u64::from_be_bytes)
}

fn total(accounts: &TxPartition) -> Result<u64> {
    accounts.iter()?.try_fold(0, |sum, entry| Ok(sum + amount_of(Some(&entry?.1))))
}
