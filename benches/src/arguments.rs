//! `--name value` arguments; the programs need no more.

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::Result;

/// The arguments of this process, by name.
pub struct Arguments(BTreeMap<String, String>);

impl Arguments {
    /// Reads `--name value` pairs and refuses names that are not among `known`.
    ///
    /// # Errors
    ///
    /// With the list of names that there are.
    pub fn parse(known: &[&str]) -> Result<Self> {
        let mut pairs = BTreeMap::new();
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").filter(|name| known.contains(name));
            let Some((name, value)) = name.zip(words.next()) else {
                return Err(format!("arguments are pairs `--name value` of: {known:?}").into());
            };
            pairs.insert(name.to_owned(), value);
        }
        Ok(Self(pairs))
    }

    /// The value of `name`, or `default`.
    ///
    /// # Errors
    ///
    /// When the value is not of the type.
    pub fn get<T: FromStr>(&self, name: &str, default: T) -> Result<T> {
        let Some(text) = self.0.get(name) else { return Ok(default) };
        text.parse().map_err(|_| format!("--{name} cannot be {text:?}").into())
    }

    /// The comma-separated values of `name`, or `default`.
    ///
    /// # Errors
    ///
    /// When one of them is not of the type.
    pub fn list<T: FromStr + Clone>(&self, name: &str, default: &[T]) -> Result<Vec<T>> {
        let Some(text) = self.0.get(name) else { return Ok(default.to_vec()) };
        let parse = |word: &str| word.trim().parse();
        let values: std::result::Result<Vec<T>, _> = text.split(',').map(parse).collect();
        values.map_err(|_| format!("--{name} cannot be {text:?}").into())
    }
}
