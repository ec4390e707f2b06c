//! A short pass of random histories; the campaign is `esker-tests`' program `archive`.

use esker_tests::Seeded;
use esker_tests::archive::histories;

#[test]
fn repositories_survive_random_histories() {
    let mut seeds = Seeded::new("histories of repositories");
    for _ in 0..60 {
        histories::run(seeds.below(u64::MAX));
    }
}
