//! Proofs: which pieces were read and found whole, and when. Bytes ↔ pieces by time, and the objects that
//! hold them; the grammar is in docs/format.md, "Proofs".
//!
//! What must stay true: a proof decides which pieces are read next and what people are told, and nothing
//! else. Whoever reads one takes memory for pieces that a manifest names and one object of limited length
//! at a time, whatever it claims. An object is removed only when another one holds what it said, or when
//! it says nothing that can be read; so checks and prunes that meet forget nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use object_store::path::Path;
use serde::Serialize;

use crate::envelope::{Envelope, HEADER_BYTES};
use crate::error::{Error, Result};
use crate::layout::{self, ProofId};
use crate::piece::Place;
use crate::repository::{Repository, now_ms};
use crate::seal::{Sealer, TAG_BYTES};

const ENVELOPE: Envelope = Envelope { magic: b"ESKRPRF\0", version: 1, called: "proof" };
/// Unsealed, a body is no longer: eight million pieces. What was proved longest ago is left out.
const BODY_BYTES_MAX: usize = 64 << 20;
const GROUP_BYTES: usize = 12;
const KEY_BYTES: usize = 8;
/// So many are read, the newest. Each holds what those before it held, so there is seldom more than one.
const READ_MAX: usize = 16;
/// A clock that is further ahead is believed by nobody.
const AHEAD_MAX_MS: u64 = 24 * 60 * 60 * 1000;

/// What was read and proved of all that the backups name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Proofs {
    /// Pieces that were proved at some time, as far as anybody remembers.
    pub proved_pieces: u64,
    /// The same in bytes, as stored.
    pub proved_bytes: u64,
    /// Pieces that were not.
    pub never_proved_pieces: u64,
    /// The same in bytes.
    pub never_proved_bytes: u64,
    /// When the piece was proved that was proved longest ago, in milliseconds since 1970.
    pub oldest_proof_ms: Option<u64>,
    /// Proofs that could not be read, and were not believed.
    pub warnings: Vec<String>,
}

impl Proofs {
    /// Whether every piece was proved at some time.
    pub fn is_complete(&self) -> bool {
        self.never_proved_pieces == 0
    }
}

impl Repository {
    /// What checks have read and proved. Reads all manifests, and no data.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] for any manifest; when the store refuses or cannot be reached. Proofs that
    /// cannot be read are no error, but in the answer.
    pub fn proofs(&self) -> Result<Proofs> {
        self.run(async {
            let census = self.census().await?;
            let named = || {
                let pieces = census.files().flat_map(|(number, _)| census.pieces(number));
                pieces.map(|((file, piece), bytes)| (Place { file, piece }, bytes))
            };
            let objects = listed(self).await?;
            let places = named().map(|(place, _)| place);
            let proved = Proved::load(self, places, &objects, now_ms()).await;
            Ok(proved.summary(named()))
        })
    }
}

/// The pieces that are named, and when each was proved.
#[derive(Default)]
pub(crate) struct Proved {
    /// By key; 0 for never.
    times: HashMap<u64, u64>,
    /// Objects that another one may replace: what they say is in `times`.
    replaced: Vec<Path>,
    /// What they say of pieces, and of pieces that nobody names any more or that others say as well.
    said: usize,
    warnings: Vec<String>,
}

impl Proved {
    /// What these objects, which have so many bytes each, say of the pieces that are named.
    pub(crate) async fn load(
        repository: &Repository,
        named: impl Iterator<Item = Place>,
        objects: &[(ProofId, u64)],
        now_ms: u64,
    ) -> Self {
        let times = named.map(|place| (place.key(), 0)).collect();
        let mut proved = Self { times, ..Self::default() };
        let mut objects = objects.to_vec();
        objects.sort_unstable_by_key(|(id, _)| Reverse(*id));
        let mut read = 0;
        for (id, bytes) in objects {
            let refused = if id.time_ms > now_ms.saturating_add(AHEAD_MAX_MS) {
                Err(Error::corrupt(id.object(), "it is of the future"))
            } else if bytes < HEADER_BYTES as u64 {
                // Nor can a store be asked for nothing.
                Err(Error::corrupt(id.object(), "it is cut short"))
            } else if bytes > object_bytes_max() as u64 {
                Err(Error::corrupt(id.object(), "it is longer than any proof"))
            } else if read == READ_MAX {
                continue;
            } else {
                read += 1;
                proved.take_up(repository, id, bytes, now_ms).await
            };
            match refused {
                Ok(()) => proved.replaced.push(id.object()),
                // Replaced by the next one, or by a prune.
                Err(Error::Missing { .. }) => {}
                Err(error) => {
                    // What a newer program has written is not ours to remove.
                    if matches!(error, Error::Corrupt { .. }) {
                        proved.replaced.push(id.object());
                    }
                    proved.warnings.push(error.to_string());
                }
            }
        }
        proved
    }

    async fn take_up(
        &mut self,
        repository: &Repository,
        id: ProofId,
        bytes: u64,
        now_ms: u64,
    ) -> Result<()> {
        let object = id.object();
        let read = repository.store.read(&object, 0..bytes).await?;
        let needed_by = "this check".to_owned();
        let read = read.ok_or(Error::Missing { object: object.to_string(), needed_by })?;
        for group in decode(id, &read, &repository.sealer)? {
            self.said += group.keys.len();
            for key in group.keys {
                // Of other pieces there is nothing to remember.
                if let Some(time) = self.times.get_mut(&key) {
                    *time = group.time_ms.min(now_ms).max(*time);
                }
            }
        }
        Ok(())
    }

    /// When a piece was proved last; 0 for never.
    pub(crate) fn time(&self, place: Place) -> u64 {
        self.times.get(&place.key()).copied().unwrap_or(0)
    }

    /// A piece that is named was proved now, or found damaged or missing.
    pub(crate) fn set(&mut self, place: Place, time_ms: Option<u64>) {
        if let Some(time) = self.times.get_mut(&place.key()) {
            *time = time_ms.unwrap_or(0);
        }
    }

    /// Writes one object that says everything, and removes those that said it before.
    pub(crate) async fn save(&self, repository: &Repository) -> Result<()> {
        let mut groups: BTreeMap<Reverse<u64>, Vec<u64>> = BTreeMap::new();
        for (key, time_ms) in self.times.iter().filter(|(_, time_ms)| **time_ms > 0) {
            groups.entry(Reverse(*time_ms)).or_default().push(*key);
        }
        let groups: Vec<_> = groups
            .into_iter()
            .map(|(Reverse(time_ms), mut keys)| {
                keys.sort_unstable();
                Group { time_ms, keys }
            })
            .collect();
        if let Some(newest) = groups.first() {
            let id = ProofId { time_ms: now_ms().max(newest.time_ms), tag: rand::random() };
            let body = encode(id, &groups, &repository.sealer);
            repository.store.put(&id.object(), &[body.into()]).await?;
        }
        for object in &self.replaced {
            // Without the permission they stay until a prune, and say nothing that is not said.
            if let Err(error) = repository.store.remove(object).await {
                tracing::debug!(%error, %object, "a proof that was replaced stays behind");
            }
        }
        Ok(())
    }

    /// Adds up what is known of these pieces, each with its length.
    pub(crate) fn summary(&self, named: impl Iterator<Item = (Place, u64)>) -> Proofs {
        let mut proofs = Proofs { warnings: self.warnings.clone(), ..Proofs::default() };
        for (place, bytes) in named {
            match self.time(place) {
                0 => {
                    proofs.never_proved_pieces += 1;
                    proofs.never_proved_bytes += bytes;
                }
                time_ms => {
                    proofs.proved_pieces += 1;
                    proofs.proved_bytes += bytes;
                    let oldest = proofs.oldest_proof_ms.get_or_insert(time_ms);
                    *oldest = time_ms.min(*oldest);
                }
            }
        }
        proofs
    }
}

/// Makes one proof of all there are, which says nothing of pieces that nobody names.
pub(crate) async fn thin(
    repository: &Repository,
    named: impl Iterator<Item = Place>,
    now_ms: u64,
) -> Result<()> {
    let objects = listed(repository).await?;
    if objects.is_empty() {
        return Ok(());
    }
    let proved = Proved::load(repository, named, &objects, now_ms).await;
    let known = proved.times.values().filter(|time_ms| **time_ms > 0).count();
    if objects.len() == 1 && proved.warnings.is_empty() && proved.said == known {
        return Ok(());
    }
    proved.save(repository).await
}

async fn listed(repository: &Repository) -> Result<Vec<(ProofId, u64)>> {
    let mut found = Vec::new();
    let each = |object: object_store::ObjectMeta| {
        found.extend(ProofId::parse(&object.location).map(|id| (id, object.size)));
        Ok(())
    };
    repository.store.each(layout::PROOFS, each).await?;
    Ok(found)
}

/// Pieces that were proved at one time, by their keys, which ascend.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    time_ms: u64,
    keys: Vec<u64>,
}

fn object_bytes_max() -> usize {
    HEADER_BYTES + BODY_BYTES_MAX + TAG_BYTES
}

/// The object of these groups, the newest first, as far as they fit.
fn encode(id: ProofId, groups: &[Group], sealer: &Sealer) -> Vec<u8> {
    let mut body = Vec::new();
    for group in groups {
        let room = (BODY_BYTES_MAX - body.len()).saturating_sub(GROUP_BYTES) / KEY_BYTES;
        let keys = &group.keys[..group.keys.len().min(room)];
        if keys.is_empty() {
            break;
        }
        body.extend_from_slice(&group.time_ms.to_le_bytes());
        body.extend_from_slice(&(keys.len() as u32).to_le_bytes());
        keys.iter().for_each(|key| body.extend_from_slice(&key.to_le_bytes()));
    }
    ENVELOPE.wrap(&id.object(), body.into(), sealer)
}

/// Parses and checks a proof.
fn decode(id: ProofId, bytes: &[u8], sealer: &Sealer) -> Result<Vec<Group>> {
    let body = ENVELOPE.open(&id.object(), bytes, sealer)?;
    groups_of(id, &body).ok_or_else(|| Error::corrupt(id.object(), "its list is none"))
}

fn groups_of(id: ProofId, mut body: &[u8]) -> Option<Vec<Group>> {
    let mut groups: Vec<Group> = Vec::new();
    while !body.is_empty() {
        let (head, rest) = body.split_at_checked(GROUP_BYTES)?;
        let time_ms = u64::from_le_bytes(head[..8].try_into().expect("eight"));
        let count = u32::from_le_bytes(head[8..].try_into().expect("four")) as usize;
        let (keys, rest) = rest.split_at_checked(count.checked_mul(KEY_BYTES)?)?;
        let keys = keys.chunks_exact(KEY_BYTES);
        let keys: Vec<_> =
            keys.map(|key| u64::from_le_bytes(key.try_into().expect("eight"))).collect();
        let in_order = groups.last().is_none_or(|before| before.time_ms > time_ms)
            && keys.is_sorted_by(|a, b| a < b);
        // Nobody knows at a time what is proved later, nor has proved anything at the beginning of it.
        if !in_order || keys.is_empty() || time_ms > id.time_ms || time_ms == 0 {
            return None;
        }
        groups.push(Group { time_ms, keys });
        body = rest;
    }
    Some(groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::Key;

    const ID: ProofId = ProofId { time_ms: 1_795_260_472_485, tag: 0xaa };

    fn groups() -> Vec<Group> {
        vec![
            Group { time_ms: 1_795_260_472_485, keys: vec![1, 0x0102_0304_0506_0708] },
            Group { time_ms: 1_795_174_072_485, keys: vec![7] },
        ]
    }

    #[test]
    fn proofs_come_back_and_every_flipped_bit_and_every_cut_is_refused() {
        for sealer in [Sealer::new(None), Sealer::new(Some(&Key::generate()))] {
            let bytes = encode(ID, &groups(), &sealer);
            assert_eq!(decode(ID, &bytes, &sealer).unwrap(), groups());
            for at in 0..bytes.len() {
                let mut rotten = bytes.clone();
                rotten[at] ^= 1 << (at % 8);
                assert!(decode(ID, &rotten, &sealer).is_err(), "byte {at}");
                assert!(decode(ID, &bytes[..at], &sealer).is_err(), "cut at {at}");
            }
            assert!(decode(ProofId { tag: 1, ..ID }, &bytes, &sealer).is_err(), "of another name");
        }
        let sealed = encode(ID, &groups(), &Sealer::new(Some(&Key::generate())));
        assert!(decode(ID, &sealed, &Sealer::new(Some(&Key::generate()))).is_err());
        assert!(decode(ID, &sealed, &Sealer::new(None)).is_err());
    }

    #[test]
    fn the_example_of_the_documentation_is_what_is_written() {
        let bytes = encode(ID, &groups()[1..], &Sealer::new(None));
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let documented = concat!(
            "45534b52505246000100000000000000",
            "00000000000000000000000000000000",
            "311d8e8518380e23d8c2fcd3ffb73148",
            "a580b6f8a10100000100000007000000",
            "00000000",
        );
        assert_eq!(hex, documented);
    }

    #[test]
    fn lists_that_nobody_would_have_written_are_refused() {
        let write = |groups: &[Group]| encode(ID, groups, &Sealer::new(None));
        let refused = |groups: &[Group]| {
            let error = decode(ID, &write(groups), &Sealer::new(None)).unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        };
        let group = |time_ms, keys: &[u64]| Group { time_ms, keys: keys.to_vec() };
        refused(&[group(ID.time_ms + 1, &[1])]);
        refused(&[group(0, &[1])]);
        refused(&[group(5, &[2, 1])]);
        refused(&[group(5, &[2, 2])]);
        refused(&[group(5, &[1]), group(5, &[2])]);
        refused(&[group(5, &[1]), group(6, &[2])]);
        // A count that leads beyond the end is met before anything is made of it.
        let mut body = 5_u64.to_le_bytes().to_vec();
        body.extend(u32::MAX.to_le_bytes());
        assert_eq!(groups_of(ID, &body), None);
        assert_eq!(groups_of(ID, &[]), Some(vec![]));
    }

    #[test]
    fn what_does_not_fit_is_what_was_proved_longest_ago() {
        let many = |time_ms| Group { time_ms, keys: (0..5_000_000).collect() };
        let bytes = encode(ID, &[many(9), many(8), many(7)], &Sealer::new(None));
        assert!(bytes.len() <= object_bytes_max());
        let kept = decode(ID, &bytes, &Sealer::new(None)).unwrap();
        let counts: Vec<_> = kept.iter().map(|group| (group.time_ms, group.keys.len())).collect();
        let room = (BODY_BYTES_MAX - GROUP_BYTES * 2) / KEY_BYTES - 5_000_000;
        assert_eq!(counts, [(9, 5_000_000), (8, room)]);
    }
}
