// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {IERC165} from "@openzeppelin/contracts/utils/introspection/IERC165.sol";

/// @title The registry of LoRA adapters and of the finality checkpoints that improve them
/// @notice This file is the manual: everything needed to call the contract stands here.
///
/// WHAT IT HOLDS. Base models (frozen, registered once), adapters on top of them, the versions of each adapter,
/// and one row per finality checkpoint. Weights stay off-chain. Of each version the chain keeps the sha256
/// digest of the root block, the multicodec of that block and the size, so that its content identifier is
/// rebuilt from the chain alone: CIDv1 = 0x01 ‖ codec ‖ 0x12 0x20 ‖ weightsHash, as `cid` returns it.
///
/// WHERE IT LIVES. A predeploy: its code is part of the genesis state, at 0x…0103 by convention. There is no
/// administrator, no upgrade and no ether in it. What other contracts get from a constructor is genesis storage.
///
/// PASSING WEIGHTS. Wherever a function takes `adapterWeights`, give one of:
///   - the serialized weights themselves, 64 bytes to 96 KiB (nodes pick them out of the calldata and store
///     them, if the transaction calls this contract directly). weightsHash = sha256(weights), codec = 0x55;
///   - the binary CIDv1 of weights already stored, 36 bytes: 0x01, codec 0x55 (raw) or 0x70 (dag-pb), 0x12,
///     0x20, digest. The size is then unknown and recorded as 0;
///   - the same 36 bytes followed by the size as 8 bytes, big-endian: 44 bytes. Prefer it to the bare CID.
///
/// WHO MAY ADD A VERSION. The owner of an adapter (at first its creator) publishes versions, with accuracy
/// unknown. The validators of the network certify versions at checkpoints, with a measured accuracy, only
///   - version 1 of a composition, which is computed from its parents and so needs nobody's leave; and
///   - versions of an adapter whose owner opened it to mentorship. Nothing else can be overwritten by them.
/// While an adapter is open its owner cannot publish, so that the two never race for one version number.
///
/// CHECKPOINTS. Validators sign, off-chain, an EIP-712 digest over (domain: name "Citrate AdapterFactory",
/// version "1", chainId, verifyingContract = this contract):
///   CheckpointCommitment(uint64 number,uint32 round,bytes32 parentRecordHash,bytes32 recordHash,
///     bytes32 validatorSetHash,bytes32 nextValidatorSetHash,CertifiedUpdate[] updates)
///   CertifiedUpdate(bytes32 adapterId,bytes32 weightsHash,uint8 codec,uint64 sizeBytes,int64 accuracyPpm)
/// Anyone may submit the signatures of validators with strictly more than 2/3 of the stake: a certificate.
/// The contract takes exactly the next number, once, on top of the record it holds. So votes of another chain,
/// another network (its genesis record differs) or another validator set are worth nothing here.
///
/// UNITS. Accuracy is the improvement over the base model in parts per million (18,000 is +1.8 %). Stakes are
/// plain weights. Versions and checkpoints count from 1. Lists are read by pages: (offset, limit).
interface IAdapterFactory is IERC165 {
    // ------------------------------------------------------------------------------------------------- types

    /// @param id sha256 that names architecture, tensors and tokenizer: anyone can recompute it from the files.
    /// @param name Readable name, 1 to 64 bytes.
    /// @param uri Where the files may be had, at most 256 bytes. A hint: check what you get against `id`.
    /// @param licence SPDX identifier or name of the licence, 1 to 64 bytes.
    /// @param sizeBytes Total size of the files.
    /// @param registrar The account that said all this. Only `id` is proof against lies.
    struct BaseModel {
        bytes32 id;
        string name;
        string uri;
        string licence;
        uint64 sizeBytes;
        address registrar;
    }

    /// @param baseModelId Base model that the adapter is made for.
    /// @param name Name given at creation; empty for a composition.
    /// @param creator Account that created or composed it. Never changes.
    /// @param owner Account that may publish, open, close and transfer.
    /// @param pendingOwner Account that was offered ownership and has not accepted; zero if none.
    /// @param rank LoRA rank, 1 to 64.
    /// @param depth 0 for a created adapter, else one more than the deeper parent; at most 16.
    /// @param versionCount Number of versions. 0: a composition that waits for its first checkpoint.
    /// @param mentorshipUntil Last checkpoint that may add versions. 0: never opened; 2^64 - 1: open.
    struct Adapter {
        bytes32 baseModelId;
        string name;
        address creator;
        address owner;
        address pendingOwner;
        uint8 rank;
        uint8 depth;
        uint32 versionCount;
        uint64 mentorshipUntil;
    }

    /// @param version Number of the version, from 1.
    /// @param parentId The adapter this version was made from: the adapter itself (its version before) for
    ///        versions above 1, the first parent for version 1 of a composition, zero for one that was created.
    /// @param weightsHash sha256 digest of the root block of the weights.
    /// @param accuracy Improvement over the base model in ppm; `ACCURACY_UNKNOWN` (-2^63) if not certified.
    /// @param creator Who made it: the publisher, or for a certified version the creator of the adapter.
    /// @param checkpoint Checkpoint that certified it; 0 if the owner published it.
    /// @param codec Multicodec of the root block: 0x55 raw, 0x70 dag-pb.
    /// @param sizeBytes Size of the weights; 0 if it was not said.
    /// @param blockNumber Block that recorded it: there is the transaction, if the weights are in calldata.
    struct Version {
        uint32 version;
        bytes32 parentId;
        bytes32 weightsHash;
        int64 accuracy;
        address creator;
        uint64 checkpoint;
        uint8 codec;
        uint64 sizeBytes;
        uint64 blockNumber;
    }

    /// @notice What a composition was made from. All zero for an adapter that was created from weights.
    /// @dev The versions are those that were latest when `composeAdapters` was called, so every node computes
    ///      the same composition. The weights are per cent and sum to 100.
    struct Lineage {
        bytes32 parentA;
        bytes32 parentB;
        uint32 versionA;
        uint32 versionB;
        uint8 weightA;
        uint8 weightB;
    }

    /// @param nodeKey Ed25519 public key of the node: its messages and its network identity.
    /// @param account Address of the secp256k1 key that signs its votes.
    /// @param stake Weight of its vote.
    struct Validator {
        bytes32 nodeKey;
        address account;
        uint96 stake;
    }

    /// @notice The next version of one adapter, as the validators agreed on it.
    struct CertifiedUpdate {
        bytes32 adapterId;
        bytes32 weightsHash;
        uint8 codec;
        uint64 sizeBytes;
        int64 accuracyPpm;
    }

    /// @notice What the votes were over. The hash of the validator set is taken from storage.
    /// @param number The checkpoint: one more than the last.
    /// @param round Attempt at this number. A voter whose proposal found no quorum votes again in a later one.
    /// @param parentRecordHash Record hash of the checkpoint before.
    /// @param recordHash Hash of the checkpoint record, which every node recomputes.
    /// @param nextValidatorSetHash Hash of the set of the next checkpoint; usually the present one.
    /// @param updates New versions, strictly ascending by adapter id, at most 64.
    struct Commitment {
        uint64 number;
        uint32 round;
        bytes32 parentRecordHash;
        bytes32 recordHash;
        bytes32 nextValidatorSetHash;
        CertifiedUpdate[] updates;
    }

    /// @notice A signature in the form of EIP-2098: `vs` is s with the recovery bit on top.
    struct CompactSignature {
        bytes32 r;
        bytes32 vs;
    }

    /// @notice The votes, and the validators they are counted against.
    /// @param seats One word per validator, account ‖ stake (20 + 12 bytes), ascending by account.
    /// @param nodeKeysHash keccak256 over the node keys in the same order, so that
    ///        keccak256(keccak256(seats) ‖ nodeKeysHash) is the hash of the set.
    /// @param signers Bit i is set if the validator of seat i signed.
    /// @param signatures One per set bit, ascending by seat.
    struct Quorum {
        bytes32[] seats;
        bytes32 nodeKeysHash;
        uint256 signers;
        CompactSignature[] signatures;
    }

    /// @notice One vote with its commitment, the updates given by their hash: evidence of equivocation.
    /// @param updatesHash keccak256 over the EIP-712 struct hashes of the updates.
    struct Vote {
        uint64 number;
        uint32 round;
        bytes32 parentRecordHash;
        bytes32 recordHash;
        bytes32 validatorSetHash;
        bytes32 nextValidatorSetHash;
        bytes32 updatesHash;
        CompactSignature signature;
    }

    /// @param number The checkpoint. 0 is the genesis record.
    /// @param recordHash Hash of its record.
    /// @param blockNumber Block that committed it.
    /// @param timestamp Time of that block, seconds since 1970.
    /// @param round Attempt that found the quorum.
    /// @param updates How many versions it added.
    struct Checkpoint {
        uint64 number;
        bytes32 recordHash;
        uint64 blockNumber;
        uint64 timestamp;
        uint32 round;
        uint16 updates;
    }

    // ------------------------------------------------------------------------------------------------ events

    event BaseModelRegistered(
        bytes32 indexed baseModelId, address indexed registrar, string name, string uri, string licence, uint64 sizeBytes
    );

    /// @notice An adapter was created. Its version 1 follows as `VersionAdded` in the same transaction.
    /// @param weightsInCalldata Whether the weights are in the calldata of the call (else they were named by CID).
    event AdapterCreated(
        bytes32 indexed adapterId,
        bytes32 indexed baseModelId,
        address indexed creator,
        string name,
        uint8 rank,
        bool weightsInCalldata
    );

    /// @notice A composition was asked for. Its version 1 comes with a later checkpoint.
    /// @param rank Rank of the result: the sum of the parents' ranks, at most 64 (above, it is recompressed).
    event AdapterComposed(
        bytes32 indexed adapterId,
        bytes32 indexed parentA,
        bytes32 indexed parentB,
        address creator,
        uint32 versionA,
        uint32 versionB,
        uint8 weightA,
        uint8 weightB,
        uint8 rank,
        uint8 depth
    );

    /// @notice An adapter has a new latest version. Emitted for every version, whoever made it.
    event VersionAdded(
        bytes32 indexed adapterId,
        uint64 indexed checkpoint,
        uint32 version,
        bytes32 weightsHash,
        uint8 codec,
        uint64 sizeBytes,
        int64 accuracyPpm,
        address creator
    );

    /// @notice A checkpoint is final.
    event CheckpointCommitted(
        uint64 indexed number,
        bytes32 indexed recordHash,
        uint32 round,
        uint256 signedStake,
        uint256 totalStake
    );

    /// @notice From the checkpoint after `number` on, another set of validators votes.
    event ValidatorsChanged(uint64 indexed number, bytes32 indexed validatorSetHash, uint256 count);

    /// @notice A validator voted twice. Certificates from `excludedFrom` on must bring a set without it.
    event EquivocationRecorded(
        address indexed account, uint64 indexed number, uint32 round, bytes32 firstDigest, bytes32 secondDigest, uint64 excludedFrom
    );

    /// @param until As in `Adapter.mentorshipUntil`.
    event MentorshipChanged(bytes32 indexed adapterId, uint64 until);

    event OwnershipOffered(bytes32 indexed adapterId, address indexed owner, address indexed pendingOwner);
    event OwnershipTransferred(bytes32 indexed adapterId, address indexed previousOwner, address indexed owner);

    // ------------------------------------------------------------------------------------------------ errors

    /// @notice A text has `length` bytes, allowed are `min` to `max`.
    error TextLength(string field, uint256 length, uint256 min, uint256 max);
    error ZeroBaseModelId();
    error UnknownBaseModel(bytes32 baseModelId);
    error BaseModelExists(bytes32 baseModelId);
    /// @notice The size of a base model, or of certified weights, must be stated.
    error ZeroSize();

    error RankOutOfRange(uint256 rank, uint256 min, uint256 max);
    /// @notice Weights above the limit go by CID: store them, then pass the 36 or 44 bytes.
    error WeightsTooLarge(uint256 sizeBytes, uint256 maxBytes);
    /// @notice Neither a CIDv1 (36 bytes, or 44 with the size) nor weights (at least 64 bytes).
    error NotWeightsNorCid(uint256 length);
    error UnsupportedCodec(uint8 codec);
    /// @notice The same account made the same call before: this is the adapter it made.
    error AdapterExists(bytes32 adapterId);
    error UnknownAdapter(bytes32 adapterId);
    error UnknownVersion(bytes32 adapterId, uint256 version, uint256 versionCount);

    error SelfComposition(bytes32 adapterId);
    error WeightsMustSumTo100(uint256 weightA, uint256 weightB);
    error BaseModelsDiffer(bytes32 baseModelA, bytes32 baseModelB);
    /// @notice A composition without a certified version: wait for the next checkpoint.
    error NotYetCertified(bytes32 adapterId);
    error DepthLimit(uint256 depth, uint256 max);

    error NotOwner(bytes32 adapterId, address owner, address caller);
    error NotPendingOwner(bytes32 adapterId, address pendingOwner, address caller);
    /// @notice The adapter is open until that checkpoint, so its versions come from certificates alone.
    error OpenToMentorship(bytes32 adapterId, uint64 until);
    /// @notice The owner did not open the adapter, or closed it: validators may not add versions.
    error ClosedToMentorship(bytes32 adapterId, uint64 until, uint64 checkpoint);

    error AlreadyCommitted(uint64 number);
    error NotNextCheckpoint(uint64 number, uint64 expected);
    error ParentMismatch(bytes32 given, bytes32 stored);
    error ZeroRecordHash();
    error ValidatorSetMismatch(bytes32 given, bytes32 stored);
    error TooManyUpdates(uint256 count, uint256 max);
    error UpdatesNotAscending(bytes32 adapterId);
    error AccuracyMissing(bytes32 adapterId);
    /// @notice The bitmap names a seat that does not exist, or another number of signers than signatures.
    error SignerCount(uint256 signers, uint256 signatures, uint256 seats);
    /// @notice The signature in the place of `account` is malformed (recovered zero) or not over this commitment.
    error WrongSigner(address account, address recovered);
    error NoQuorum(uint256 signedStake, uint256 totalStake);

    /// @notice The list does not have the hash that the certificate binds.
    error NextSetMismatch(bytes32 given, bytes32 certified);
    error ValidatorCount(uint256 count, uint256 max);
    error ValidatorsNotAscending(address account);
    error ZeroStake(address account);
    error EquivocatorInSet(address account);
    /// @notice An equivocator must leave: this certificate must bring a set without it.
    error ExclusionDue(uint64 number, uint64 excludedFrom);

    error NotAValidator(uint256 seat, address account);
    error NotEquivocation();
    error AlreadyRecorded(address account);

    // ------------------------------------------------------------------------------------ base models: writes

    /// @notice Registers a base model, once and for good. Anyone may.
    /// @dev Reverts with `ZeroBaseModelId`, `BaseModelExists`, `TextLength` or `ZeroSize`.
    function registerBaseModel(
        bytes32 baseModelId,
        string calldata name,
        string calldata uri,
        string calldata licence,
        uint64 sizeBytes
    ) external;

    // --------------------------------------------------------------------------------------- adapters: writes

    /// @notice Creates an adapter with its version 1. The caller becomes creator and owner.
    /// @dev The id is derived from chain, contract, caller and all arguments: the same call twice reverts with
    ///      `AdapterExists`, so it may be repeated safely until its effect is seen.
    /// @dev Reverts also with `ZeroBaseModelId`, `UnknownBaseModel`, `TextLength`, `RankOutOfRange`,
    ///      `WeightsTooLarge`, `NotWeightsNorCid` or `UnsupportedCodec`.
    /// @param baseModelId A registered base model.
    /// @param name 1 to 64 bytes. Need not be unique.
    /// @param adapterWeights The weights, or their CID: see PASSING WEIGHTS above.
    /// @param rank LoRA rank, 1 to 64.
    /// @return adapterId The identity of the adapter.
    function createAdapter(bytes32 baseModelId, string calldata name, bytes calldata adapterWeights, uint256 rank)
        external
        returns (bytes32 adapterId);

    /// @notice Asks for the exact weighted sum of the latest versions of two adapters of one base model.
    /// @dev The result has no version until the validators certify the weights they computed, normally in the
    ///      next checkpoint. The rank is the sum of the ranks; above 64 the nodes recompress to 64.
    /// @dev A parent that is itself a composition without a version is refused with `NotYetCertified`: there is
    ///      no version to bind, and a chain of pending ones could never be checked against calldata.
    /// @dev Reverts also with `UnknownAdapter`, `SelfComposition`, `WeightsMustSumTo100`, `BaseModelsDiffer`,
    ///      `DepthLimit` or `AdapterExists` (the same account asked for the same composition before).
    /// @param weightA Per cent of the first, 1 to 99.
    /// @param weightB Per cent of the second: 100 - weightA.
    function composeAdapters(bytes32 adapterA, bytes32 adapterB, uint256 weightA, uint256 weightB)
        external
        returns (bytes32 adapterId);

    /// @notice Adds a version to one's own adapter, with accuracy unknown.
    /// @dev Reverts with `UnknownAdapter`, `NotOwner`, `OpenToMentorship`, `NotYetCertified`, or as `createAdapter`
    ///      on bad weights.
    /// @return version The number of the new version.
    function publishVersion(bytes32 adapterId, bytes calldata adapterWeights) external returns (uint32 version);

    /// @notice Lets the validators add certified versions to one's own adapter, from the next checkpoint on.
    /// @dev Reverts with `UnknownAdapter` or `NotOwner`.
    function openToMentorship(bytes32 adapterId) external;

    /// @notice Takes that leave back. One checkpoint more may still add a version: its votes may be under way.
    /// @dev So no owner can make a certificate fail that was right when it was signed. Closing a second time does
    ///      not postpone the end. Reverts with `UnknownAdapter` or `NotOwner`.
    function closeMentorship(bytes32 adapterId) external;

    /// @notice Offers ownership to another account, which must accept. Offer zero to withdraw.
    /// @dev Reverts with `UnknownAdapter` or `NotOwner`.
    function transferOwnership(bytes32 adapterId, address newOwner) external;

    /// @notice Takes an offered ownership. `creator` stays who it was.
    /// @dev Reverts with `UnknownAdapter` or `NotPendingOwner`.
    function acceptOwnership(bytes32 adapterId) external;

    // ------------------------------------------------------------------------------------ checkpoints: writes

    /// @notice Commits the next checkpoint with a certificate. Anyone may; the first valid one counts.
    /// @dev Reverts with `AlreadyCommitted` when the number was taken before (a lost race, not a fault), or with
    ///      `NotNextCheckpoint`, `ParentMismatch`, `ZeroRecordHash`, `ValidatorSetMismatch`, `SignerCount`,
    ///      `WrongSigner`, `NoQuorum`; on updates with `TooManyUpdates`, `UpdatesNotAscending`, `UnknownAdapter`,
    ///      `ClosedToMentorship`, `UnsupportedCodec`, `ZeroSize`, `AccuracyMissing`; on a change of validators
    ///      with `NextSetMismatch`, `ValidatorCount`, `ValidatorsNotAscending`, `ZeroStake`, `EquivocatorInSet`,
    ///      `ExclusionDue`.
    /// @param nextValidators Empty, unless commitment.nextValidatorSetHash differs from the present set's hash:
    ///        then the full new set, ascending by account, at most 256.
    function commitCheckpoint(
        Commitment calldata commitment,
        Quorum calldata quorum,
        Validator[] calldata nextValidators
    ) external;

    /// @notice Proves that a validator signed two different commitments for one number, round and parent.
    /// @dev It is barred from every later set. Certificates from the checkpoint after next on are refused until
    ///      one brings a set without it (the next one may be under way and is spared).
    /// @dev Reverts with `NotAValidator`, `NotEquivocation`, `WrongSigner` or `AlreadyRecorded`.
    /// @param seat Its place in `validators()`.
    function reportEquivocation(uint256 seat, Vote calldata first, Vote calldata second) external;

    // ------------------------------------------------------------------------------------------------- views

    /// @notice 1 for this interface. Check it before use: an empty account answers with no data at all.
    function contractVersion() external pure returns (uint256);

    /// @notice The accuracy of versions that nobody certified: -2^63.
    // solhint-disable-next-line func-name-mixedcase
    function ACCURACY_UNKNOWN() external pure returns (int64);

    function baseModel(bytes32 baseModelId) external view returns (BaseModel memory);
    function baseModelCount() external view returns (uint256);
    /// @notice Base models in the order of registration, from `offset`, at most `limit`.
    function baseModels(uint256 offset, uint256 limit) external view returns (BaseModel[] memory);

    /// @dev Reverts with `UnknownAdapter`, as do all views below that take an adapter id.
    function adapter(bytes32 adapterId) external view returns (Adapter memory);
    function adapterCount() external view returns (uint256);
    /// @notice Ids of adapters in the order of creation, from `offset`, at most `limit`. No log need be read.
    function adapters(uint256 offset, uint256 limit) external view returns (bytes32[] memory);
    function lineage(bytes32 adapterId) external view returns (Lineage memory);

    /// @dev Reverts with `UnknownVersion`.
    function version(bytes32 adapterId, uint256 number) external view returns (Version memory);
    /// @dev Reverts with `NotYetCertified` while a composition has no version.
    function latest(bytes32 adapterId) external view returns (Version memory);
    function versionCount(bytes32 adapterId) external view returns (uint256);
    /// @notice Versions from the oldest: `offset` 0 begins with version 1. At most `limit`.
    function history(bytes32 adapterId, uint256 offset, uint256 limit) external view returns (Version[] memory);
    /// @notice The binary CIDv1 of the weights of a version, 36 bytes. Reverts with `UnknownVersion`.
    function cid(bytes32 adapterId, uint256 number) external view returns (bytes memory);

    /// @notice The last final checkpoint. Number 0 stands for the genesis record.
    function lastCheckpoint() external view returns (Checkpoint memory);
    /// @dev Reverts with `NotNextCheckpoint` for one that is not committed yet.
    function checkpoint(uint64 number) external view returns (Checkpoint memory);

    /// @notice The validators whose votes count for the next checkpoint, ascending by account.
    function validators() external view returns (Validator[] memory);
    function validatorSetHash() external view returns (bytes32);
    /// @notice The checkpoint at which an account voted twice; 0 if it never did.
    function equivocation(address account) external view returns (uint64 number);
    /// @notice First checkpoint whose certificate must bring a set without equivocators; 0 if none is due.
    function exclusionDueFrom() external view returns (uint64 number);

    /// @notice The digest that a validator of the present set signs for a commitment.
    function commitmentDigest(Commitment calldata commitment) external view returns (bytes32);

    /// @notice The EIP-712 domain, as ERC-5267 has it.
    function eip712Domain()
        external
        view
        returns (
            bytes1 fields,
            string memory name,
            string memory version,
            uint256 chainId,
            address verifyingContract,
            bytes32 salt,
            uint256[] memory extensions
        );
}
