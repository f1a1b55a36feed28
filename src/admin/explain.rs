//! `GET /explain`.
use super::problem::Problem;
pub(super) async fn explain() -> Problem {
    Problem::new(http::StatusCode::NOT_IMPLEMENTED, "not implemented")
}
